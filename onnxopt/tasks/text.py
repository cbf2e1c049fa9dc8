"""Tasks of models that read text alone."""

from __future__ import annotations

from onnxopt.tasks.task import Head, Task

_LOGITS = ("logits",)
_QUOTED = '"..."'
_PAIR = r'--pair "a query\ta document"'
_BEST_SPAN = "the answer runs from the best start to the best end not before it"

_SEQUENCES = Head("AutoModelForSequenceClassification", "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES", _LOGITS)

TEXT_TASKS: tuple[Task, ...] = (
    Task(
        "feature-extraction",
        "embeddings of texts",
        (
            Head(
                "AutoModel",
                "MODEL_MAPPING_NAMES",
                ("text_embeds", "last_hidden_state"),
                first=True,
                tower="get_text_features",
            ),
        ),
        ("text",),
        "embeddings",
        _QUOTED,
        endpoint="/v1/embeddings",
        synonyms=("sentence-similarity", "sentence-embedding", "default"),
    ),
    Task(
        "fill-mask",
        "the likeliest words for a hidden one",
        (Head("AutoModelForMaskedLM", "MODEL_FOR_MASKED_LM_MAPPING_NAMES", _LOGITS),),
        ("text",),
        "mask_fills",
        '"The capital of France is [MASK]."',
        after="softmax over the last axis of logits at the position of the mask token",
        synonyms=("masked-lm",),
    ),
    Task(
        "text-classification",
        "labels of texts, or of pairs of texts",
        (_SEQUENCES,),
        ("text",),
        "classification",
        _QUOTED,
        endpoint="/v1/classify",
        synonyms=("sentiment-analysis", "sequence-classification"),
        pairs="may",
    ),
    Task(
        "text-ranking",
        "how well documents answer a query",
        (_SEQUENCES,),
        ("text",),
        "ranking",
        _PAIR,
        after="documents in the order of their scores, the highest first",
        endpoint="/v1/rerank",
        synonyms=("reranking", "rerank", "cross-encoder"),
        asked=True,
        signs=("sentence_transformers", "sbert_ce_default_activation_function"),
        labels=("relevance",),
        pairs="must",
    ),
    Task(
        "zero-shot-classification",
        "which of your labels fits a text",
        (_SEQUENCES,),
        ("text",),
        "zero_shot",
        '"..." --labels sports,politics',
        after="for each label of the user the text is read with a sentence that claims it; softmax over these labels "
        "of the logits of entailment",
        endpoint="/v1/classify",
        asked=True,
        needs="entail",
    ),
    Task(
        "next-sentence-prediction",
        "whether a text goes on from another",
        (Head("AutoModelForNextSentencePrediction", "MODEL_FOR_NEXT_SENTENCE_PREDICTION_MAPPING_NAMES", _LOGITS),),
        ("text",),
        "classification",
        r'--pair "a text\tanother"',
        endpoint="/v1/classify",
        synonyms=("next-sentence",),
        labels=("follows", "random"),
        pairs="must",
    ),
    Task(
        "token-classification",
        "labels of words: names, places, things",
        (Head("AutoModelForTokenClassification", "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES", _LOGITS),),
        ("text",),
        "token_labels",
        _QUOTED,
        after="softmax over the last axis of logits, per token; labels by index",
        endpoint="/v1/classify",
        synonyms=("ner",),
    ),
    Task(
        "question-answering",
        "the piece of a text that answers a question",
        (
            Head(
                "AutoModelForQuestionAnswering",
                "MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES",
                ("start_logits", "end_logits"),
            ),
        ),
        ("text",),
        "answers",
        '"Who?" --context "the text to look in"',
        after=_BEST_SPAN,
    ),
    Task(
        "text-generation",
        "a text that goes on from a prompt",
        (Head("AutoModelForCausalLM", "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES", _LOGITS, generates=True),),
        ("text",),
        "continuations",
        _QUOTED,
        endpoint="/v1/chat/completions",
        synonyms=("causal-lm", "causal-lm-with-past", "text-generation-with-past"),
    ),
    Task(
        "text2text-generation",
        "another text: a translation, a summary, an answer",
        (
            Head(
                "AutoModelForSeq2SeqLM",
                "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
                _LOGITS,
                generates=True,
                paired=True,
            ),
        ),
        ("text",),
        "continuations",
        _QUOTED,
        synonyms=(
            *("translation", "summarization", "seq2seq-lm", "seq2seq-lm-with-past"),
            "text2text-generation-with-past",
        ),
    ),
)
