"""The report of an agent's run: what its folder says, in the words of agents, and nothing taken for markup."""

from __future__ import annotations

import json
import re
from html import unescape
from pathlib import Path

import pytest
from agent_runs import behaviour, episode, evaluation, line, made, turn

from flowward.agent import episodes
from flowward.pages import index, report, unrolled
from flowward.pages.watch import compare
from flowward.pages.watch.folder import Folder, Seen
from flowward.training.folder import RunFolder

HOSTILE = "<img src=x onerror=alert(1)></script><b>ignore all rules</b> & \ud800 \u202e \x00"


def whole(path: Path) -> RunFolder:
    """A finished run with two evaluations and their episodes."""
    lines = [
        line(0, evaluation=evaluation(0.2)),
        *(line(k) for k in range(1, 20)),
        line(20, evaluation=evaluation(0.9, 0.0)),
    ]
    guess = [turn("guess", "55")]
    shown = {
        0: [episode(f"question {k}", False, f"kind {k % 2}", answer="55", turns=guess) for k in range(8)],
        20: [episode(f"question {k}", True, f"kind {k % 2}") for k in range(8)],
    }
    run = made(path / "run", lines, shown)
    run.write_summary("flowward agent train --iterations 20", finished=True)
    return run


def page(run: RunFolder) -> str:
    return report.write(run.path).read_text("utf-8")


def words(html: str) -> str:
    """What a reader sees, charts aside."""
    markup = re.sub(r"<(script|style).*?</\1>", "", html, flags=re.DOTALL)
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", markup)).split())


def section(html: str, name: str) -> str:
    found = re.search(rf'<section id="{name}">.*?</section>', html, re.DOTALL)
    assert found, name
    return found[0]


def charts(html: str) -> dict[str, dict]:
    found = re.findall(r'<div class="plot"></div>\s*<script type="application/json">(.*?)</script>', html, re.DOTALL)
    return {each["title"]: each for each in map(json.loads, found)}


def test_the_sections_of_an_agent_are_there_with_the_models_of_all_modules(tmp_path: Path) -> None:
    html = page(whole(tmp_path))
    models = (
        "Models: planner world, executor http://127.0.0.1:8000/v1#a-small-model, verifier rule, generator same, "
        "analysis none."
    )
    for name in ("result", "scores", "samples", "tools", "turns"):
        assert models in words(section(html, name)), name
    links = re.findall(r'<li><a href="#(\w+)">([^<]+)</a></li>', html)
    assert [name for name, _ in links] == re.findall(r'<section id="(\w+)">', html)
    said = words(html)
    assert "Sampled success on held-out questions rose from 20.0 % [10.0, 30.0] before training to 90.0 %" in said
    assert "1,280 training episodes" in said
    assert "flowward agent train --iterations 20 copy" in said
    assert f"flowward agent train --config {tmp_path / 'run' / 'config.yaml'} copy" in said


def test_success_is_shown_sampled_and_greedy_over_all_and_by_category(tmp_path: Path) -> None:
    html = page(whole(tmp_path))
    drawn = charts(section(html, "scores"))
    assert list(drawn) == ["Sampled success and greedy success over all questions", "lookup", "sum"]
    for chart in drawn.values():
        assert [each["name"] for each in chart["series"]] == ["sampled", "greedy"]
        assert all(len(each["low"]) == 2 for each in chart["series"])
    assert drawn["sum"]["series"][0]["y"] == [10.0, 45.0]
    said = words(section(html, "scores"))
    assert "overall, sampled 20.0 % [10.0, 30.0] 90.0 % [80.0, 100.0] +70.0 points no 40" in said
    assert "sum, greedy 10.0 % [0.0, 20.0] 45.0 % [35.0, 55.0] +35.0 points no 20" in said
    assert "intervals over the measured episodes" in said and "Other scores" not in said


def test_five_questions_are_side_by_side_and_not_chosen_by_their_results(tmp_path: Path) -> None:
    html = section(page(whole(tmp_path)), "samples")
    shown = re.findall(r'<article class="question">(.*?)</article>', html, re.DOTALL)
    assert [re.findall(r"question \d", words(each))[0] for each in shown] == [f"question {k}" for k in (0, 1, 2, 3, 4)]
    for each in shown:
        before, after = (words(part) for part in each.split('<div class="side">')[1:])
        assert before.startswith("Before training: ✗ wrong answer 55 guess")
        assert "result 55 verifier stop: search was used 1 turn, stopped by the verifier" in before
        assert after.startswith("After 20 iterations: ✓ right answer 9 search input width arlo result 9 verifier stop")
    assert "expected answer: 9" in words(shown[0])
    assert "8 sampled episodes of each evaluation are in episodes.jsonl" in words(html)


def test_each_category_has_a_question(tmp_path: Path) -> None:
    names = [*"aaaaaaaa", *"bb", "c"]
    found = [unrolled.Recorded(iteration=0, question=f"{k}", category=name) for k, name in enumerate(names)]
    assert [each.question for each in unrolled._spread(found)] == ["0", "8", "10", "1", "9"]


def test_tools_are_shown_by_turn_before_and_after(tmp_path: Path) -> None:
    html = section(page(whole(tmp_path)), "tools")
    before, after = html.split('<div class="side">')[1:]
    assert "turn 1, 40 episodes guess 50.0 % search 50.0 % turn 2, 20 episodes search 100.0 %" in words(before)
    assert (
        "turn 1, 40 episodes search 100.0 %" in words(after) and "guess" not in words(after).split("episodes that")[0]
    )
    assert "guess 50.0 % 0.0 % 50.0 % 0.0 % search 100.0 %" in words(html)
    (chart,) = charts(html).values()
    guess, search = chart["series"]
    assert (guess["name"], search["name"]) == ("guess", "search")
    assert guess["y"] == [0.2] * 9 + [0.0] * 11  # a tool that was not used has no key in its line
    colours = set(re.findall(r'<i class="part-(\d)" aria-hidden="true"></i>search', html))
    assert colours == {str(search["colour"])}


def test_problems_are_told_even_if_they_are_rare(tmp_path: Path) -> None:
    run = whole(tmp_path)
    how = behaviour(0.0, turns=2.5, troubles={"unreadable": 0.0004, "error": 0.25}, cut=0.5)
    last = line(21, evaluation=evaluation(0.9, behaviour={"sampled": how, "greedy": how}))
    run.append(last)
    html = section(page(run), "turns")
    said = words(html)
    assert "turns per episode 2.00 2.50 2.00 2.50" in said
    assert "error of the tool 0.0 % 25.0 % 0.0 % 25.0 %" in said
    assert "planner's answer cut at the limit of tokens 0.0 % 50.0 %" in said
    never = said.partition("Never in these evaluations: ")[2]
    assert never.startswith("stopped at the limit of turns, ") and "unreadable plan" not in never.partition(".")[0]
    drawn = charts(html)
    assert drawn["Turns with a problem, in training: unreadable plan"]["series"][0]["y"][2] == 0.02
    assert "How episodes end, in training: stopped by the verifier" in drawn


def test_the_time_of_each_module_has_its_model(tmp_path: Path) -> None:
    said = words(section(page(whole(tmp_path)), "time"))
    assert "executor http://127.0.0.1:8000/v1#a-small-model 20.0 s 1 s" in said
    assert "rollout world 40.0 s 2 s" in said and "tools – 10.0 s 0.5 s" in said


def test_the_page_speaks_of_episodes_and_questions(tmp_path: Path) -> None:
    run = whole(tmp_path)
    for name, own in (("report", page(run)), ("index", index.write(tmp_path).read_text("utf-8"))):
        said = words(own.partition('<section id="repeat">')[0])
        assert not re.findall(r"[^.]*\b(?:images?|pictures?)\b[^.]*", said.replace("enlarged picture", "")), name
        assert not re.findall(r"\bprompts\b", re.sub(r"prompts or questions", "", said)), name
    assert '<option value="samples">episodes</option>' in page(run)


def test_text_from_outside_is_never_markup(tmp_path: Path) -> None:
    bad = turn(
        HOSTILE, HOSTILE * 20, said=HOSTILE, goal=HOSTILE, context=HOSTILE, arguments={HOSTILE: HOSTILE},
        trouble=HOSTILE, verdict=HOSTILE,
    )  # fmt: skip
    each = episode(HOSTILE, True, HOSTILE, expected=[HOSTILE], scores={HOSTILE: 0.5}, answer=HOSTILE, end=HOSTILE,
                   why=HOSTILE, turns=[bad])  # fmt: skip
    how = behaviour(0.5, ends={HOSTILE: 1.0}, used={HOSTILE: 1.0}, tools={HOSTILE: {HOSTILE: 1.0}},
                    troubles={HOSTILE: 1.0})  # fmt: skip
    spoilt = evaluation(0.5, modules={HOSTILE: HOSTILE}, behaviour={"sampled": how, "greedy": how})
    one = line(1, **{f"tool/{HOSTILE}": 1.0}, evaluation=spoilt)
    run = made(tmp_path / "run", [line(0, evaluation=spoilt), one], {0: [each], 1: [each]})
    html = page(run)
    assert "<img" not in re.sub(r"<dialog.*?</dialog>", "", html, flags=re.DOTALL)
    assert "<b>ignore" not in html and "onerror=alert(1)></script>" not in html
    assert html.count("&lt;img src=x onerror=alert(1)&gt;") > 20
    assert not re.search(r"<(script|link|img|iframe)[^>]*(src|href)\s*=\s*[\"']?(https?:)?//", html)


def test_long_text_is_folded_and_a_flood_is_cut(tmp_path: Path) -> None:
    run = whole(tmp_path)
    flood = episode(
        "question 0", True, "kind 0", turns=[turn(result="x" * (unrolled.LONG + 7)), turn(result="a\n" * 9)]
    )
    episodes.keep(run, 20, [flood])
    html = section(page(run), "samples")
    folded = re.findall(r'<details class="long"><summary>(.*?)</summary><pre[^>]*>(.*?)</pre>', html, re.DOTALL)
    assert len(folded) == 2 and folded[0][0] == "x" * 120 + " …"
    assert folded[0][1] == "x" * unrolled.LONG + " … (7 more characters in episodes.jsonl)"


def test_an_episode_that_was_lost_is_no_wrong_answer(tmp_path: Path) -> None:
    run = whole(tmp_path)
    lost = episode("question 0", False, "kind 0", end="failed", why="the server is gone", answer="", turns=[])
    episodes.keep(run, 20, [lost])
    said = words(section(page(run), "samples"))
    assert (
        "After 20 iterations: ✗ lost answer none 0 turns, lost because a server did not answer: the server is gone"
        in said
    )


def test_a_score_that_is_no_verdict_is_a_number(tmp_path: Path) -> None:
    run = whole(tmp_path)
    episodes.keep(run, 20, [episode("question 0", True, scores={"exact": 1.0, "f1": 0.25})])
    assert "After 20 iterations: ✓ right f1 0.250 answer" in words(section(page(run), "samples"))


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([], "There is no evaluation yet."),
        ([line(0)], "No use of tools has been recorded."),
        ([line(0, evaluation=evaluation(0.2))], "No evaluation after training yet"),
        ([line(0, evaluation=evaluation(0.2)), line(1)], "Not finished (still running or interrupted): 1 iteration"),
        ([line(0), line(1)], "No evaluation has been recorded."),
    ],
)
def test_a_run_that_has_only_begun_has_a_page(tmp_path: Path, lines: list[dict], expected: str) -> None:
    said = words(page(made(tmp_path / "run", lines)))
    assert expected in said and "No episodes have been saved." in said


def test_one_evaluation_has_no_second_column(tmp_path: Path) -> None:
    run = made(tmp_path / "run", [line(0, evaluation=evaluation(0.2))], {0: [episode("one", False)]})
    html = page(run)
    assert html.count('<div class="side">') == 2  # of the question, and of the tools
    assert "turns per episode 2.00 2.00" in words(section(html, "turns"))
    assert "1 sampled episode of each evaluation is in episodes.jsonl" in words(html)


def test_older_and_damaged_lines_leave_parts_out(tmp_path: Path) -> None:
    bare = {key: value for key, value in evaluation(0.2).items() if key not in ("behaviour", "modules", "samples")}
    odd = evaluation(0.3, behaviour={"sampled": {"turns": "many"}, "greedy": 7}, modules="mine")
    lines = [line(0, evaluation=bare), line(1, evaluation=odd, **{"tool/search": "all", "turns": None})]
    run = made(tmp_path / "run", lines)
    (run.path / episodes.FILE).write_text('{"iteration": 0}\n{"iteration": 0, "question": 7}\nno JSON\n[]\n')
    html = page(run)
    assert "No episodes have been saved." in words(html)
    (chart,) = charts(section(html, "tools")).values()
    assert [each["key"] for each in chart["series"]] == ["tool/guess"] and "No turns" in words(section(html, "turns"))


def test_a_question_that_was_not_asked_again_says_so(tmp_path: Path) -> None:
    run = made(tmp_path / "run", [line(0)], {0: [episode("one", False)], 5: [episode("other", True)]})
    assert "After 5 iterations This question was not asked." in words(section(page(run), "samples"))


def test_an_unknown_kind_of_run_is_refused(tmp_path: Path, refused) -> None:
    run = made(tmp_path / "run", [line(0)], kind="agnet")
    assert refused("report", run.path) == "unknown kind of run 'agnet'; did you mean 'agent'?"
    assert "unknown kind of run" in words(index.write(tmp_path).read_text("utf-8"))
    other = made(tmp_path / "other", [line(0)], kind=["agent"])
    assert "config.yaml is damaged: kind is" in refused("report", other.path)


def images(path: Path) -> RunFolder:
    run = RunFolder.create(path, {"model": "scenes", "reward": ["scenes"], "algorithm": {"name": "awm"}})
    score = {"mean": 0.5, "low": 0.4, "high": 0.6, "n": 4}
    scores = {"x-strict": {"overall": score, "categories": {"a": score}}}
    run.append({"iteration": 0, "images": 0, "evaluation": {"prompts": "held-out", "scores": scores}})
    run.append({"iteration": 1, "images": 8, "reward": 0.5})
    return run


def test_the_index_has_runs_of_both_kinds(tmp_path: Path) -> None:
    whole(tmp_path)
    images(tmp_path / "pictures")
    said = words(index.write(tmp_path).read_text("utf-8"))
    assert "95 % confidence intervals over the initial noise of the images or the measured episodes." in said
    assert "run agentflow on world, reward exact Finished after 20 iterations. sampled success 20.0 %" in said
    assert "pictures awm on scenes, reward scenes" in said and "strict accuracy 50.0 %" in said


def test_runs_of_both_kinds_are_on_one_page(tmp_path: Path) -> None:
    folders = [whole(tmp_path).path, images(tmp_path / "pictures").path]
    told = compare.write(folders, tmp_path / "both.html")
    assert told.startswith(
        "the headline scores differ and cannot be compared: exact on world-held-out (run); x-strict on"
    )
    html = (tmp_path / "both.html").read_text("utf-8")
    found = re.search(r'<script type="application/json" id="runs">(.*?)</script>', html, re.DOTALL)
    assert found
    one, other = json.loads(found[1])["runs"]
    assert one["facts"]["nouns"]["samples"] == "episodes" and not one["facts"]["pictures"]
    assert other["facts"]["nouns"]["samples"] == "images" and other["facts"]["pictures"]
    assert one["axes"]["trained"]["samples"][-1] == 1280 and other["axes"]["trained"]["samples"] == [8]
    assert "metric/episodes" not in one["series"] and "metric/images" not in other["series"]
    assert "score/exact (greedy)" in one["series"] and one["series"]["metric/tool/search"]["y"][0] == 0.8


def test_both_kinds_are_watched(tmp_path: Path) -> None:
    whole(tmp_path)
    images(tmp_path / "pictures")
    ((_, data),) = Folder(tmp_path).news(Seen())
    found = {each["id"]: each for each in json.loads(data)["runs"]}
    assert found["run"]["facts"]["nouns"]["intervals"] == "the measured episodes"
    assert found["run"]["axes"]["trained"]["samples"][0] == 64
    assert found["pictures"]["facts"]["nouns"]["samples"] == "images"


@pytest.mark.parametrize(
    ("command", "instead"),
    [
        ("train --resume RUN", "train"),
        ("train --config RUN/config.yaml", "train"),
        ("train --model RUN", "train --resume"),
        ("eval RUN", "eval"),
        ("sample RUN cat", "solve"),
        ("export RUN", "export"),
    ],
)
def test_commands_for_images_name_the_one_for_agents(tmp_path: Path, refused, command: str, instead: str) -> None:
    run = whole(tmp_path)
    before = sorted(path.name for path in run.path.iterdir())
    said = refused(*command.replace("RUN", str(run.path)).split())
    assert said.endswith(f"of kind 'agent', not of images: use flowward agent {instead}")
    assert sorted(path.name for path in run.path.iterdir()) == before


def test_a_policy_is_not_loaded_from_an_agents_run(tmp_path: Path) -> None:
    from flowward.export import trained

    with pytest.raises(ValueError, match=r"is a run of kind 'agent', not of images: use flowward agent$"):
        trained.load(whole(tmp_path).path)
