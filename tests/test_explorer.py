"""The explorer's own script, run under Node, against NumPy at full width and against the library."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowdim_jax as ld
from lowdim_jax import spectra, theory
from theory_checks.cli import main
from theory_checks.explorer import page

NODE = shutil.which("node")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
needs_node = pytest.mark.skipif(NODE is None, reason="node is not installed: the page's script cannot be run")
DEFAULTS = {
    "depth": 3,
    "scale": 0.1,
    "targets": [1.0, 0.6, 0.35],
    "fraction": 0.5,
    "alpha": 1.0,
    "d": 12,
    "rank": 3,
    "seed": 1,
}
# One setting a line; each differs from the defaults in what it names.
GRID = [
    {},
    {"depth": 1},
    {"depth": 2, "scale": 0.05},
    {"depth": 4, "scale": 0.2},
    {"depth": 6, "scale": 0.4, "steps": 400},
    {"alpha": 5.0},
    {"alpha": 0.3},
    {"alpha": 2.0, "depth": 2},
    {"alpha": 2.0, "depth": 1},
    {"d": 6, "seed": 3},
    {"d": 25, "rank": 6, "seed": 7},
    {"rank": 2},
    {"targets": [1.1, 0.9, 0.5, 0.3, 0.2], "d": 10, "rank": 5},
    {"fraction": 0.95},
    {"fraction": 1.12, "targets": [1.0, 0.3], "steps": 300},
    {"scale": 0.01, "fraction": 0.9},
]
EVALUATE = Path(__file__).with_name("explorer_values.js").read_text(encoding="utf-8")


def node(code: str, given=None):
    """The value of `code`, an expression in `given`, after the page's scripts."""
    program = "\n".join(
        [
            *map(script, ("theory", "model", "charts", "controls")),
            EVALUATE,
            'const given = JSON.parse(require("fs").readFileSync(0, "utf8"));',
            f"console.log(JSON.stringify({code}));",
        ]
    )
    done = subprocess.run(
        [str(NODE), "-e", program], input=json.dumps(given), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def script(name: str) -> str:
    found = re.search(rf'<script id="{name}">(.*?)</script>', page(), re.DOTALL)
    assert found is not None
    return found[1]


def settings_of(change: dict) -> dict:
    return {**DEFAULTS, **change}


def name_of(change: dict) -> str:
    return ",".join(f"{key}={value}" for key, value in change.items()) or "defaults"


@pytest.fixture(scope="module")
def evaluated():
    if NODE is None:
        pytest.skip("node is not installed: the page's script cannot be run")
    settings = [settings_of(change) for change in GRID]
    return list(zip(settings, node("given.map(evaluate)", settings), strict=True))


def every(test):
    """The test for each line of the grid, as `settings, shown`."""
    return pytest.mark.parametrize("line", range(len(GRID)), ids=map(name_of, GRID))(test)


def full_width(settings, shown):
    """Gradient descent on d × d matrices in NumPy: layers, target, U*, V* from the page's random overlap."""
    d, r, depth = settings["d"], len(settings["targets"]), settings["depth"]
    left = np.zeros((d, r))
    left[: 2 * r] = np.reshape(shown["frame"], (2 * r, r))
    right = np.eye(d, r)
    target = left @ np.diag(settings["targets"]) @ right.T
    layers = [settings["scale"] * np.eye(d) for _ in range(depth)]
    outer = shown["rate"] * settings["alpha"]
    rates = [outer if l in (0, depth - 1) else shown["rate"] for l in range(depth)]
    records = []
    for step in range(shown["steps"] + 1):
        product = product_of(layers, d)
        if step % shown["stride"] == 0:
            records.append(product)
        gradients = [
            product_of(layers[l + 1 :], d).T @ (product - target) @ product_of(layers[:l], d).T
            for l in range(depth)
        ]
        layers = [w - rate * g for w, rate, g in zip(layers, rates, gradients, strict=True)]
    return np.stack(records), target, left, right


def product_of(layers, d):
    product = np.eye(d)
    for layer in layers:
        product = layer @ product
    return product


@every
def test_the_original_network_is_gradient_descent_at_full_width(evaluated, line):
    settings, shown = evaluated[line]
    records, target, left, right = full_width(settings, shown)
    d, r = settings["d"], len(settings["targets"])
    original = {name: np.reshape(values, (len(records), -1)) for name, values in shown["original"].items()}
    u, s, vt = np.linalg.svd(records)
    # Singular value i is component i's, but where one has passed another and its vectors tell so.
    np.testing.assert_allclose(-np.sort(-original["sigma"], axis=1), s[:, :r], rtol=1e-9, atol=1e-12)
    place = np.argsort(np.argsort(-original["sigma"], axis=1, kind="stable"), axis=1)
    loss = np.sum((records - target) ** 2, axis=(1, 2)) / 2
    np.testing.assert_allclose(original["loss"][:, 0], loss, rtol=1e-9, atol=1e-12)
    modes = np.einsum("ia,nij,jb->nab", left, records, right).reshape(len(records), -1)
    np.testing.assert_allclose(original["modes"], modes, atol=1e-10)
    if d > 2 * r:
        outside = np.zeros(d)
        outside[-1] = 1
        np.testing.assert_allclose(original["bulk"][:, 0], records @ outside @ outside, rtol=1e-9)
    # Vectors are defined as far as their singular values are apart.
    gaps = np.min(np.abs(np.diff(s[:, : r + 1], axis=1)), axis=1) > 1e-5 * s[:, 0]
    assert gaps.sum() > len(records) / 3
    u_overlap = np.abs(np.einsum("nda,db->nab", u[:, :, :r], left))
    v_overlap = np.abs(np.einsum("nad,db->nab", vt[:, :r], right))
    u_overlap, v_overlap = (
        np.take_along_axis(overlap, place[:, None], axis=1)[:, 0] for overlap in (u_overlap, v_overlap)
    )
    np.testing.assert_allclose(original["left"][gaps], u_overlap[gaps], atol=1e-9)
    np.testing.assert_allclose(original["right"][gaps], v_overlap[gaps], atol=1e-9)


def goals(settings):
    """Targets of the compressed network's modes: σ* or, beyond the rank, 0."""
    kept = settings["targets"][: settings["rank"]]
    return np.array(kept + [0.0] * (settings["rank"] - len(kept)))


@every
def test_the_compressed_network_is_the_exact_map(evaluated, line):
    settings, shown = evaluated[line]
    depth, goal = settings["depth"], goals(settings)
    factors = np.full((depth, len(goal)), settings["scale"])
    rates = shown["rate"] * np.where(np.isin(np.arange(depth), [0, depth - 1]), settings["alpha"], 1.0)
    sigma = []
    for step in range(shown["steps"] + 1):
        product = np.prod(factors, axis=0)
        if step % shown["stride"] == 0:
            sigma.append(product)
        others = np.stack([np.prod(np.delete(factors, l, axis=0), axis=0) for l in range(depth)])
        factors = factors + rates[:, None] * (goal - product) * others
    sigma = np.stack(sigma)
    measured = np.reshape(shown["compressed"]["sigma"], sigma.shape)
    np.testing.assert_allclose(measured, sigma, rtol=1e-9, atol=1e-300)
    missed = np.sum(np.square(settings["targets"][settings["rank"] :])) / 2
    loss = np.sum((sigma - goal) ** 2, axis=1) / 2 + missed
    np.testing.assert_allclose(shown["compressed"]["loss"], loss, rtol=1e-9, atol=1e-20)


@needs_node
def test_the_compressed_network_is_the_librarys_map(x64, evaluated):
    settings, shown = evaluated[5]
    sigma = theory.mode_descent(
        jnp.asarray(goals(settings)),
        depth=settings["depth"],
        scale=settings["scale"],
        alpha=settings["alpha"],
        learning_rate=shown["rate"],
        steps=shown["steps"],
        record_every=shown["stride"],
    )
    np.testing.assert_allclose(np.reshape(shown["compressed"]["sigma"], sigma.shape), sigma, rtol=1e-9)


@needs_node
@pytest.mark.parametrize("depth", [1, 2, 3, 4, 6])
def test_closed_forms_are_the_librarys(x64, evaluated, depth):
    """All lines of one depth at once: one compilation."""
    modes = [
        (target, settings, mode, fit)
        for settings, shown in evaluated
        if settings["depth"] == depth
        for target, mode, fit in zip(settings["targets"], shown["flow"], shown["fitTimes"], strict=True)
        if mode is not None
    ]
    columns = {
        name: np.array([mode[name] for _, _, mode, _ in modes])
        for name in ("times", "values", "levels", "reached")
    }

    def options(like):
        """Target, scale and α of each mode, in the shape of a column."""
        column = {name: [settings[name] for _, settings, *_ in modes] for name in ("scale", "alpha")}
        column["target"] = [target for target, *_ in modes]
        spread = {
            name: np.broadcast_to(np.array(values)[:, None], like.shape) for name, values in column.items()
        }
        if np.all(spread["alpha"] == 1):
            spread["alpha"] = 1.0  # compiles faster
        return spread.pop("target"), {"depth": depth, **spread}

    target, settings = options(columns["times"])
    values = theory.mode_trajectory(columns["times"], target, **settings)
    np.testing.assert_allclose(columns["values"], values, rtol=1e-9)
    target, settings = options(columns["levels"])
    times = theory.mode_time(columns["levels"] * target, target, **settings)
    np.testing.assert_allclose(columns["reached"], times, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose([fit for *_, fit in modes], times[:, 2], rtol=1e-9)  # at 0.95


@every
def test_edge_plateaus_and_two_cycle_are_the_librarys(x64, evaluated, line):
    settings, shown = evaluated[line]
    depth, top = settings["depth"], settings["targets"][0]
    sharpness = theory.sharpness(top, depth=depth, alpha=settings["alpha"])
    np.testing.assert_allclose(shown["edge"], 2 / sharpness, rtol=1e-12)
    np.testing.assert_allclose(shown["rate"], settings["fraction"] * shown["edge"], rtol=1e-15)
    plateaus = theory.plateau_losses(np.array(settings["targets"]))
    np.testing.assert_allclose(shown["plateaus"], plateaus, atol=1e-12)
    if depth > 1:
        cycle = theory.two_cycle(top, depth=depth, learning_rate=shown["rate"])
        np.testing.assert_allclose(shown["cycle"], cycle, rtol=1e-9)


@every
def test_measured_fit_times_are_crossings_between_records(evaluated, line):
    settings, shown = evaluated[line]
    for place, which in enumerate(("compressed", "original")):
        sigma = np.reshape(shown[which]["sigma"], (shown["size"], -1))
        for column, target in zip(sigma.T, settings["targets"], strict=False):
            measured = shown["fitted"][settings["targets"].index(target)][place]
            after = np.flatnonzero(column >= 0.95 * target)
            if len(after) == 0:
                assert measured == "Infinity"
                continue
            two = slice(after[0] - 1, after[0] + 1)
            expected = np.interp(0.95 * target, column[two], np.arange(shown["size"])[two] * shown["stride"])
            assert float(measured) == pytest.approx(expected, rel=1e-9)


@needs_node
def test_a_network_of_width_a_million_is_the_librarys(x64):
    settings = settings_of({"d": 10**6, "targets": [1.0, 0.5], "rank": 2, "scale": 0.1, "steps": 60})
    shown = node("evaluate(given)", settings)
    target = shaped_target(settings, shown["frame"])
    reduction = ld.reduction.reduce_identity(target, depth=3, scale=0.1)
    layers, rate = reduction.layers, shown["rate"]
    gradient = jax.jit(jax.grad(reduction.problem.loss))
    errors, values = [], []
    for _ in range(shown["steps"] + 1):
        errors.append(float(reduction.problem.recovery_error(layers)))
        values.append(spectra.singular_values(ld.reduction.cores(layers), rank=2))
        layers = jax.tree.map(lambda w, g: w - rate * g, layers, gradient(layers))
    norm = np.linalg.norm(settings["targets"])
    np.testing.assert_allclose(np.sqrt(2 * np.array(shown["original"]["loss"])) / norm, errors, rtol=1e-9)
    np.testing.assert_allclose(np.reshape(shown["original"]["sigma"], (-1, 2)), np.stack(values), rtol=1e-9)


def shaped_target(settings, frame):
    d, r = settings["d"], len(settings["targets"])
    left = np.zeros((d, r))
    left[: 2 * r] = np.reshape(frame, (2 * r, r))
    return ld.LowRank(jnp.asarray(left), jnp.array(settings["targets"]), jnp.eye(d, r))


@needs_node
def test_waiting_ratios_solve_their_equations():
    ratios = np.array(node("[1, 2, 3, 4, 5, 6, 10].map(Model.escapeRatio)"))
    known = [1, 1, 1.199679, 1.278465, 1.320003, 1.345540, 1.391934]  # docs/theory.md 3.7
    np.testing.assert_allclose(ratios, known, atol=1e-6)
    np.testing.assert_allclose(1 / np.tanh(ratios[2]), ratios[2], rtol=1e-9)


@needs_node
@pytest.mark.parametrize(("d", "r"), [(10, 5), (12, 2), (1000, 3), (10**6, 3)])
def test_random_overlaps_have_the_exact_distributions_moments(d, r):
    frames = np.array(
        node(
            "given.seeds.map((seed) => Array.from(Model.overlap(seed, given.d, given.r)))",
            {"seeds": list(range(1, 2001)), "d": d, "r": r},
        )
    )
    frames = frames.reshape(-1, 2 * r, r)
    gram = np.einsum("nij,nik->njk", frames, frames)
    np.testing.assert_allclose(gram, np.broadcast_to(np.eye(r), gram.shape), atol=1e-13)
    overlap = frames[:, :r]  # Cᵀ, entries of variance 1/d whatever r
    squares = d * np.mean(overlap**2, axis=0)
    assert np.all(np.abs(squares - 1) < 5 * np.sqrt(2 / len(frames)))
    assert np.all(np.abs(np.mean(overlap, axis=0)) < 5 / np.sqrt(d * len(frames)))
    # E‖C‖⁴ tells a Haar frame from independent entries: its entries repel each other.
    fourth = d * (d + 2) * np.mean(overlap[:, 0, 0] ** 4)
    assert abs(fourth - 3) < 5 * np.sqrt(96 / len(frames))


@needs_node
def test_a_width_below_twice_the_rank_is_refused():
    message = node("(() => { try { Model.overlap(1, 5, 3); } catch (error) { return error.message; } })()")
    assert message == "d is 5, expected at least 2r = 6"


@needs_node
def test_the_page_says_who_is_ahead_as_it_is_in_the_run():
    """Wider than max(r, d − r) the compressed network falls behind (docs/theory.md 1.5), as on the page."""
    given = {"d": 8, "targets": [1.0, 0.6], "steps": 2000}
    settings = [settings_of({**given, "rank": rank}) for rank in (2, 6, 8)]
    found = node(
        "given.map((s) => { const run = new Model.Run(s); run.advance(); return [run.behind(), "
        "run.stride, Array.from(run.compressed.loss), Array.from(run.original.loss)]; })",
        settings,
    )
    for behind, _, compressed, original in found[:2]:
        assert behind is None
        assert np.all(np.array(compressed) <= np.array(original) * (1 + 1e-9) + 1e-12)
    behind, stride, compressed, original = found[2]
    ahead = np.array(compressed) <= np.array(original)
    assert behind == stride * np.argmin(ahead) > 0
    assert not ahead[-1]


@needs_node
def test_a_start_too_small_to_watch_is_raised_just_enough():
    found = node(
        "[given, Model.feasible(given, 5000)].map((s) => [s.scale, Model.horizon(s)])",
        settings_of({"depth": 5, "scale": 0.01}),
    )
    (_, wanted), (scale, taken) = found
    assert wanted > 10**6
    assert taken <= 5000 < 1.01 * taken
    assert 0.01 < scale < 0.3


@needs_node
@pytest.mark.parametrize("change", GRID[:12], ids=map(name_of, GRID[:12]))
def test_a_link_carries_the_settings(change):
    settings = settings_of(change)
    settings |= {"d": max(10, settings["d"]), "scale": min(0.3, settings["scale"])}
    settings.pop("steps", None)
    hash_ = node("Controls.toHash(given, 0.25, 'dark')", settings)
    back = node("Controls.fromHash(given)", hash_)
    assert back["place"] == 0.25
    assert back["theme"] == "dark"
    assert back["settings"] == settings


@needs_node
@pytest.mark.parametrize(
    "hash_", ["", "#L=99&e=-1&s=1,2,3&rh=x", "#s=&seed=1.5&t=", "#s=1,,0.5&theme=pink", "#n=NaN&a=1e9&%%%"]
)
def test_a_damaged_link_gives_the_defaults(hash_):
    back = node("Controls.fromHash(given)", hash_)["settings"]
    assert back == node('Controls.fromHash("")')["settings"]


def test_the_page_is_one_file_that_loads_nothing():
    text = page()
    assert "http" not in text
    assert not re.search(
        r"\b(src|href)=|@import|\burl\(|\bfetch\(|XMLHttpRequest|/\* \w+\.(css|js) \*/", text
    )


def test_the_command_writes_the_page_and_opens_it(tmp_path, monkeypatch, capsys):
    opened = []
    monkeypatch.setattr("webbrowser.open", lambda address: opened.append(address) or True)
    target = tmp_path / "new" / "page.html"
    assert main(["explore", "--out", str(target)]) == 0
    assert target.read_text(encoding="utf-8") == page()
    assert opened == [target.as_uri()]
    assert main(["explore", "--out", str(target), "--no-open"]) == 0
    assert len(opened) == 1
    assert "wrote" in capsys.readouterr().out


def test_the_command_says_in_a_sentence_that_a_file_cannot_be_written(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["explore", "--out", str(tmp_path / "file" / "page.html"), "--no-open"]) == 2
    assert "cannot be written" in capsys.readouterr().err


@needs_node
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: the page cannot be opened")
def test_a_browser_shows_the_same_numbers_at_390_pixels_without_an_error(tmp_path):
    settings = [settings_of(change) for change in (GRID[0], GRID[3], GRID[5], GRID[14])]
    probe = f"""<script>{EVALUATE}
      addEventListener("load", () => {{
        View.controls.apply({{ ...View.controls.settings, alpha: 5, rank: 2 }});
        const started = performance.now();
        for (let i = 0; i <= 20; i++) {{ View.seek(i / 20); View.tick(performance.now()); }}
        const report = {{
          errors: window.errors, wide: document.documentElement.scrollWidth - innerWidth,
          frame: (performance.now() - started) / 21, shown: {json.dumps(settings)}.map(evaluate),
          story: document.getElementById("story").textContent,
        }};
        parent.postMessage(JSON.stringify(report), "*");
      }});</script></body>"""
    catch = (
        '<head><script>window.errors = []; addEventListener("error", (e) => errors.push(e.message))</script>'
    )
    (tmp_path / "page.html").write_text(
        page().replace("<head>", catch).replace("</body>", probe), encoding="utf-8"
    )
    (tmp_path / "frame.html").write_text(
        """<body><iframe src="page.html" style="width: 390px; height: 800px"></iframe><pre id="report"></pre>
        <script>
        addEventListener("message", (event) => document.getElementById("report").append(event.data));
        </script></body>""",
        encoding="utf-8",
    )
    done = subprocess.run(
        [
            str(CHROMIUM),
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            f"--user-data-dir={tmp_path / 'profile'}",
            "--virtual-time-budget=3000",
            "--dump-dom",
            (tmp_path / "frame.html").as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    found = re.search(r'<pre id="report">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found is not None, done.stderr
    assert found[1], done.stdout[-500:]
    report = json.loads(html.unescape(found[1]))
    assert report["errors"] == []
    assert report["wide"] <= 0
    assert report["story"].startswith("Iteration")
    under_node = node("given.map(evaluate)", settings)
    for ours, theirs in zip(under_node, report["shown"], strict=True):
        assert ours["steps"] == theirs["steps"]
        for network in ("compressed", "original"):
            for quantity in ("sigma", "loss"):
                np.testing.assert_allclose(
                    ours[network][quantity], theirs[network][quantity], rtol=1e-9, atol=1e-15
                )
