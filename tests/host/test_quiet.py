from __future__ import annotations

import logging
import threading

from onnxopt.host.quiet import without_log_lines


def test_log_lines_come_back_in_whatever_order_threads_end() -> None:
    before = logging.root.manager.disable
    first, second = without_log_lines(), without_log_lines()
    with_first = threading.Thread(target=first.__enter__)
    with_first.start()
    with_first.join()
    second.__enter__()
    assert logging.root.manager.disable >= logging.WARNING
    first.__exit__(None, None, None)
    assert logging.root.manager.disable >= logging.WARNING
    second.__exit__(None, None, None)
    assert logging.root.manager.disable == before
