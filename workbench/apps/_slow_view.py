"""The place of a view that takes long to build: the page answers, and says how far it is, until the view is there."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from functools import partial

import panel as pn

from workbench.display import Text, alert
from workbench.errors import WorkbenchError

log = logging.getLogger(__name__)


class SlowView(pn.viewable.Viewer):
    """One view at a time, which has `close()`; the last one is closed when another comes, or when the visitor leaves.

    remember(view): called when it is there, and when one of its parameters `state` changes.
    """

    def __init__(self, remember: Callable[[object], object], state: Sequence[str], **params):
        super().__init__(**params)
        self._remember, self._state, self._shown, self._doc = remember, list(state), [], pn.state.curdoc
        self._doing, self._body = Text(margin=(0, 10)), pn.Column(sizing_mode="stretch_width", min_height=300)
        pn.state.on_session_destroyed(lambda _: [view.close() for view in self._shown])

    def __panel__(self) -> pn.viewable.Viewable:
        return pn.Column(self._doing, self._body, sizing_mode="stretch_width")

    def show(self, build: Callable, wanted: dict[str, str]) -> None:
        """`build(tell, wanted)` in a thread; tell(text) says in HTML how far it is.

        What cannot be shown is told in an alert, and the view comes without what was wanted of it.
        """
        self._body.loading = True
        threading.Thread(target=self._work, args=(build, wanted), daemon=True).start()

    def _work(self, build: Callable, wanted: dict[str, str]) -> None:
        errors, view = {}, None
        for one in [wanted, {}] if wanted else [{}]:
            try:
                view = build(self._tell, one)
                break
            except Exception as error:                                  # an exception here would leave an empty page
                if not isinstance(error, WorkbenchError):
                    log.exception("the page could not be built")
                errors[str(error)] = alert(error)
        self._doc.add_next_tick_callback(partial(self._put, list(errors.values()), view))

    def _tell(self, text: str) -> None:
        self._doc.add_next_tick_callback(partial(self._doing.param.update, object=text))

    def _put(self, alerts: list, view) -> None:
        for old in self._shown:
            old.close()
        self._shown[:] = [view] * (view is not None)
        self._doing.object, self._body.loading, self._body[:] = "", False, alerts + self._shown
        if view is not None:
            view.param.watch(lambda *_: self._remember(view), self._state)
            self._remember(view)
