"""The page of a dashboard of a trained model: a choice of runs, and the view of one.

    address → run, session, state of the view → SlowView → the view, and the address that brings it back
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import panel as pn

from workbench.apps._slow_view import SlowView
from workbench.display import Text, home, page
from workbench.training import storage


def page_of_a_run(title: str, build: Callable, known: Sequence[str], state: Sequence[str],
                  more: Sequence[str] = (), says: str = "") -> pn.viewable.Viewable:
    """`build(run, session, tell, **state)` for the run that the address names, by default the first of `known`.

    build runs in a thread and may say in HTML how far it is, `tell(text)`; its view has `opens`, what names its session
    in an address, and `close()`. state: parameters of the view that the address remembers; more: what it may say
    besides; all as text. says: a sentence above the view. What cannot be shown is told in an alert, and the view comes
    without what the address asked.
    """
    location = pn.state.location
    asked = {key: values[-1].decode() for key, values in pn.state.session_args.items()}
    first = asked.get("run") or known[0]
    first = first if first in known else str(storage.place(first))      # one run has one name, however it is written
    run = pn.widgets.Select(label="Run", options=list(dict.fromkeys([first, *known])), value=first,
                           sizing_mode="stretch_width", max_width=440)
    session = pn.widgets.TextInput(label="Session (empty: the run's first)", value=asked.get("session", ""),
                                   sizing_mode="stretch_width", max_width=300)
    besides = {key: asked[key] for key in more if key in asked}

    def show(wanted: dict[str, str]) -> None:
        which = run.value, session.value or None
        view.show(lambda tell, wanted: build(*which, tell, **wanted), wanted)

    def remember(view) -> None:
        location.update_query(run=run.value, session=view.opens, **besides,
                              **{key: str(getattr(view, key)) for key in state})

    def other_run(_) -> None:
        besides.clear()
        if session.value:
            session.value = ""                                          # which shows it
        else:
            show({})

    view = SlowView(remember, state)
    session.param.watch(lambda _: show(dict(besides)), "value")
    run.param.watch(other_run, "value")
    pn.state.onload(lambda: show({key: asked[key] for key in (*state, *more) if key in asked}))
    return page(title, home(), Text(says, visible=bool(says), margin=(0, 10)), pn.FlexBox(run, session), view)
