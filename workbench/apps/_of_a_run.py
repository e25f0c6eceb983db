"""The page of a dashboard of a trained model: a choice of runs, and the view of one, built while the page says how far.

    address → run, session, state of the view → build in a thread → the view, and the address that brings it back
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from functools import partial

import panel as pn

from workbench.display import Text, alert, home, page
from workbench.errors import WorkbenchError

log = logging.getLogger(__name__)


def page_of_a_run(title: str, build: Callable, known: Sequence[str], state: Sequence[str],
                  more: Sequence[str] = (), says: str = "") -> pn.viewable.Viewable:
    """`build(run, session, tell, **state)` for the run that the address names, by default the first of `known`.

    build runs in a thread and may say in HTML how far it is, `tell(text)`; its view has `opens`, what names its session
    in an address, and `close()`. state: parameters of the view that the address remembers; more: what it may say
    besides; all as text. says: a sentence above the view. What cannot be shown is told in an alert, and the view comes
    without what the address asked.
    """
    location, doc = pn.state.location, pn.state.curdoc
    asked = {key: values[-1].decode() for key, values in pn.state.session_args.items()}
    first = asked.get("run") or known[0]
    run = pn.widgets.Select(label="Run", options=list(dict.fromkeys([first, *known])), value=first, width=440)
    session = pn.widgets.TextInput(label="Session (empty: the run's first)", value=asked.get("session", ""), width=300)
    doing, body, shown = Text(margin=(0, 10)), pn.Column(sizing_mode="stretch_width", min_height=300), []
    besides = {key: asked[key] for key in more if key in asked}

    def show(wanted: dict[str, str]) -> None:
        body.loading = True
        threading.Thread(target=work, args=(run.value, session.value, wanted), daemon=True).start()

    def work(run: str, session: str, wanted: dict[str, str]) -> None:
        errors, view = {}, None
        for one in (wanted, {}):                                        # what is wrong in the address is left out
            try:
                view = build(run, session or None, tell, **one)
                break
            except Exception as error:                                  # an exception here would leave an empty page
                if not isinstance(error, WorkbenchError):
                    log.exception("the page could not be built")
                errors[str(error)] = alert(error)
        doc.add_next_tick_callback(partial(put, list(errors.values()), view))

    def tell(text: str) -> None:
        doc.add_next_tick_callback(partial(doing.param.update, object=text))

    def put(content: list, view) -> None:
        for old in shown:
            old.close()
        shown[:] = [view] * (view is not None)
        doing.object, body.loading, body[:] = "", False, content + shown
        if view is not None:
            view.param.watch(lambda *_: remember(view), list(state))
            remember(view)

    def remember(view) -> None:
        location.update_query(run=run.value, session=view.opens, **besides,
                              **{key: str(getattr(view, key)) for key in state})

    def other_run(_) -> None:
        besides.clear()
        if session.value:
            session.value = ""                                          # which shows it
        else:
            show({})

    pn.state.on_session_destroyed(lambda _: [view.close() for view in shown])
    session.param.watch(lambda _: show(dict(besides)), "value")
    run.param.watch(other_run, "value")
    pn.state.onload(lambda: show({key: asked[key] for key in (*state, *more) if key in asked}))
    return page(title, home(), Text(says, visible=bool(says), margin=(0, 10)), pn.Row(run, session), doing, body)
