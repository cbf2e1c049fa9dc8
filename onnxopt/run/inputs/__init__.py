"""Text, images, sound and chats as a model takes them."""
