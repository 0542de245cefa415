"""nftk report: its numbers against the network's own, hostile names, and the page in a real browser."""

import json
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from cli_runs import command

import nftk
from nftk.cli.runs import load_run
from nftk.interpret import deletion_curve, rank_correlation, report
from nftk.interpret.report_figures import labels, percent

HOSTILE = ['<img src="x" onerror="alert(1)">', "</script><script>alert(2)</script>", 'a & b "c" $x$ %{y} <b>d</b>']


class Page(HTMLParser):
    """The text of a page, what its elements load, and its figures."""

    def __init__(self, text):
        super().__init__()
        self.words, self.loads, self.tags, self.data, self.inside = [], [], [], {}, None
        self.feed(text)
        self.text = " ".join(" ".join(self.words).replace("\u00a0", " ").split())

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append((tag, attributes))
        self.loads += [attributes[name] for name in ("src", "href", "srcset", "data", "action") if name in attributes]
        self.inside = (tag, attributes.get("id")) if tag in ("script", "style") else None

    def handle_endtag(self, tag):
        self.inside = None

    def handle_data(self, data):
        if self.inside is None:
            self.words.append(data)
        elif self.inside[1] is not None:
            self.data[self.inside[1].removesuffix("-data")] = json.loads(data)

    def trace(self, figure, i=0):
        return self.data[figure]["data"][i]


def values(page, figure):
    return np.array(page.trace(figure)["z"], dtype=float)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A small network on real images, some of its Omega closed, with the plain one beside it."""
    out = tmp_path_factory.mktemp("report") / "digits"
    quick = ("--depth", 3, "--width", 24, "--epochs", 4, "--constraint", "l1ball", "--lr-omega", 0.2)
    done = command("train", "--data", "digits", "--out", out, "--baseline", *quick)
    assert done.returncode == 0, done.stderr
    done = command("report", out, "--json")
    assert done.returncode == 0, done.stderr
    return out, json.loads(done.stdout)


@pytest.fixture(scope="module")
def page(run):
    return Page((run[0] / "report.html").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """A run on rows that are no images, with classes whose names are code; trained by mse, with an output bias."""
    folder = tmp_path_factory.mktemp("hostile")
    random = np.random.default_rng(0)
    y = np.arange(120) % 3
    x = random.normal(size=(120, 6)) + 2 * np.eye(3)[y] @ random.normal(size=(3, 6))
    np.savez(folder / "a.npz", x_train=x[:80], y_train=y[:80], x_test=x[80:], y_test=y[80:], class_names=HOSTILE)
    quick = ("--depth", 2, "--width", 8, "--epochs", 2, "--loss", "mse", "--lr", 0.01, "--output-bias")
    done = command("train", "--data", folder / "a.npz", "--out", folder / "run", *quick)
    assert done.returncode == 0, done.stderr
    done = command("report", folder / "run", "--limit", 20)
    assert done.returncode == 0, done.stderr
    return folder / "run"


class TestNumbers:
    def test_head(self, run, page):
        summary = json.loads((run[0] / "summary.json").read_text())
        right = round(450 * summary["test_accuracy"])
        assert f"Test accuracy {percent(right / 450)} ({right} of 450)".replace("\u00a0", " ") in page.text
        assert 0 < summary["zeros"] < 30
        from_start = round(summary["zeros_from_start"] * summary["zeros"])
        assert f"Zeros in Omega {summary['zeros']} of 30; {from_start} of them from the start" in page.text
        assert f"Parameters {summary['parameters']:,}" in page.text
        assert "NFT-K network 64 – 3 × 24 – 10 on digits" in page.text
        assert f"nftk {nftk.__version__}" in page.text
        assert f"{summary['baseline']['test_accuracy']:.1%}".replace("%", " %") in page.text
        assert f"{summary['test_loss']:.3g}" in page.text

    def test_figure2(self, run, page):
        omega = nftk.NFTKMLP.load(run[0] / "model.safetensors").omega.detach().double().numpy()
        rows = omega / np.linalg.norm(omega, axis=1, keepdims=True)
        for name, matrix in {"layers": rows.T @ rows, "cosines": rows @ rows.T, "omega": rows}.items():
            shown = values(page, f"figure2-{name}")
            np.testing.assert_allclose(np.nan_to_num(shown), matrix, atol=1e-12)
            assert (np.isnan(shown) == (matrix == 0)).all()
        hover = page.trace("figure2-omega")
        assert hover["y"] == list("0123456789")
        assert hover["x"] == ["1", "2", "3"]
        assert hover["hovertemplate"].startswith("class %{y}, layer %{x}")
        i, j = np.argwhere(omega == 0)[0]
        assert hover["text"][i][j] == "weight 0<br>before that 0<br>exactly zero"
        i, j = np.unravel_index(omega.argmax(), omega.shape)
        assert hover["text"][i][j] == f"weight {rows[i, j]:.3g}<br>before that {omega[i, j]:.3g}"
        dots = page.trace("figure2-omega", 1)
        assert len(dots["x"]) == (omega == 0).sum()

    def test_importances(self, run, page):
        trained = load_run(run[0])
        x, y = trained.inputs("test"), trained.data.y_test
        found = {
            kind: nftk.importance(trained.model, x, y, kind, measure="loss").double()
            for kind in ("omega", "contribution", "ablation")
        }
        for kind, matrix in found.items():
            np.testing.assert_allclose(np.nan_to_num(values(page, f"importance-{kind}")), matrix, atol=1e-12)
        lost = nftk.importance(trained.model, x, y, "ablation").numpy()
        hover = page.trace("importance-ablation")["text"][4][0].split("<br>")
        assert hover[2] == f"accuracy lost without it {lost[4, 0]:.3g}"
        for a in found:
            row = " ".join(f"{rank_correlation(found[a], found[b]):.2f}" for b in found)
            assert f"{a} {row}" in page.text
        for i, kind in enumerate(found):
            line, curve = page.trace("deletion", i), deletion_curve(trained.model, x, y, found[kind])
            assert line["y"] == curve.accuracy.tolist()
            assert line["name"] == f"{kind} {curve.area:.3f}"

    def test_training(self, run, page):
        for i, name in enumerate(("history", "baseline_history")):
            lines = [json.loads(line) for line in (run[0] / f"{name}.jsonl").read_text().splitlines()]
            for figure, fields in {
                "accuracy": ("test_accuracy", "train_accuracy"),
                "loss": ("test_loss", "loss"),
            }.items():
                for j, field in enumerate(fields):
                    assert page.trace(f"training-{figure}", 2 * i + j)["y"] == [line[field] for line in lines]
        history = [json.loads(line) for line in (run[0] / "history.jsonl").read_text().splitlines()]
        assert page.trace("training-zeros")["y"] == [line["zeros"] for line in history]
        assert len(page.data["training-zeros"]["data"]) == 1

    def test_classes(self, run, page):
        trained = load_run(run[0])
        x, y = trained.inputs("test"), trained.data.y_test
        with torch.no_grad():
            answers = trained.model(x).argmax(1)
        counts = np.array([[int(((y == i) & (answers == j)).sum()) for j in range(10)] for i in range(10)])
        assert page.trace("confusion")["customdata"] == counts.tolist()
        off = counts * (1 - np.eye(10, dtype=int))
        np.testing.assert_array_equal(np.nan_to_num(values(page, "confusion")), off)
        share = nftk.importance(trained.model, x, kind="contribution")
        worst = int(off.sum(1).argmax())
        row = (
            f"{worst} {counts[worst].sum()} {percent(counts[worst, worst] / counts[worst].sum())} "
            f"{off[worst].argmax()} ({off[worst].max()}) {int(share[worst].argmax()) + 1} "
            f"({percent(float(share[worst].max()))})"
        )
        assert row.replace("\u00a0", " ") in page.text

    def test_worst_examples(self, run, page):
        trained = load_run(run[0])
        x, y = trained.inputs("test"), trained.data.y_test
        with torch.no_grad():
            f = trained.model(x)
            losses = torch.nn.functional.cross_entropy(f, y, reduction="none")
            parts = trained.model.readouts(x) * trained.model.omega.T
        order = losses.sort(descending=True).indices[:12].tolist()
        assert [int(row) for row in re.findall(r"\d+\. Test example (\d+)", page.text)] == order
        row, label = order[0], int(y[order[0]])
        answer = int(f[row].argmax())
        assert answer != label
        for i, which in enumerate((label, answer)):
            bars = page.trace("case-1", i)
            assert bars["name"] == str(which)
            np.testing.assert_allclose(bars["y"], parts[row, :, which], rtol=1e-5, atol=1e-6)
        assert f"Answer: {answer} , probability {100 * f[row].softmax(0)[answer]:.1f} %" in page.text
        pictures = [attributes for tag, attributes in page.tags if tag == "img"]
        assert len(pictures) == 12
        assert pictures[0]["src"].startswith("data:image/png;base64,")
        assert pictures[0]["alt"] == f"Test example {row}, of class {label}"

    def test_result(self, run):
        out, result = run
        assert result["report"] == str(out / "report.html")
        assert result["examples"] == result["importances_on"] == 450
        assert result["bytes"] == (out / "report.html").stat().st_size

    def test_same_run_same_bytes(self, run, tmp_path):
        done = command("report", run[0], "--out", tmp_path / "again.html")
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "again.html").read_bytes() == (run[0] / "report.html").read_bytes()


class TestHostile:
    def test_nothing_is_loaded(self, run, hostile):
        for folder in (run[0], hostile):
            page = Page((folder / "report.html").read_text(encoding="utf-8"))
            assert page.loads
            assert all(address.startswith(("#", "data:")) for address in page.loads)
            assert not any("@import" in word or "url(" in word for word in page.words)
            policy = next(a["content"] for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
            assert policy.startswith("default-src 'none'; script-src 'sha256-")
            assert "http" not in policy

    def test_names_stay_text(self, hostile):
        text = (hostile / "report.html").read_text(encoding="utf-8")
        page = Page(text)
        for name in HOSTILE:
            assert name in page.text
        assert not any("<" in json for json in re.findall(r'"application/json"[^>]*>(.*?)</script>', text))
        assert not any(tag in ("img", "b") or "onerror" in attributes for tag, attributes in page.tags)
        assert sum(tag == "script" and "id" not in attributes for tag, attributes in page.tags) == 2
        for name in page.trace("figure2-omega")["y"]:
            assert not set(name) & {"<", ">", "$"}

    def test_rows_that_are_no_images(self, hostile):
        page = Page((hostile / "report.html").read_text(encoding="utf-8"))
        trained = load_run(hostile)
        x, y = trained.inputs("test"), trained.data.y_test
        with torch.no_grad():
            f = trained.model(x)
        row = int((f - torch.eye(3)[y]).square().sum(1).argmax())
        first = page.text.split("1. Test example ")[1]
        assert first.startswith(f"{row} ")
        feature = int(x[row].abs().argmax())
        assert f"feature {feature} {x[row, feature]:.3g}" in first
        assert f"output {f[row, y[row]]:.3g}" in first
        assert "with the output's bias" in page.text

    def test_limit_is_told(self, hostile):
        page = Page((hostile / "report.html").read_text(encoding="utf-8"))
        assert "computed on 20 of the 40 test examples, drawn with seed 0" in page.text
        assert np.sum(page.trace("confusion")["customdata"]) == 40

    def test_labels(self):
        assert labels(["a", "a"]) == ["0: a", "1: a"]
        assert labels(["<b>", "$x$"]) == ["&lt;b&gt;", "&#36;x&#36;"]


class TestEdges:
    def test_percent(self):
        assert [percent(share).replace("\u00a0", " ") for share in (0, 1e-9, 0.5, 1 - 1e-9, 1)] == [
            "0.0 %", "0.1 %", "50.0 %", "99.9 %", "100.0 %",
        ]  # fmt: skip

    @pytest.mark.parametrize("d", [1, 2])
    def test_smallest_network(self, d):
        model, x = nftk.NFTKMLP(3, [4], d), torch.randn(5, 3)
        page = Page(report(model, x, torch.zeros(5, dtype=torch.int64)))
        assert "5. Test example" in page.text
        assert "There is no record of an epoch" in page.text
        assert len(page.data["case-1"]["data"]) == d

    def test_closed_network(self):
        model = nftk.NFTKMLP(3, [4, 4], 2, omega_init=0.0)
        page = Page(report(model, torch.randn(5, 3), torch.zeros(5, dtype=torch.int64)))
        assert "Not here: nftk.importance: x must make every logit vary" in page.text
        assert "Zeros in Omega 4 of 4" in page.text
        assert "importance-contribution" not in page.data

    def test_negative_entries_are_coloured_about_zero(self):
        omega = torch.tensor([[1.0, -3.0], [0.5, 0.0]])
        page = Page(report(nftk.NFTKMLP(3, [4, 4], 2, omega_init=omega, constraint=None), torch.randn(5, 3),
                           torch.tensor([0, 1, 0, 1, 0])))  # fmt: skip
        shown = page.trace("importance-omega")
        assert (shown["zmin"], shown["zmax"]) == (-3.0, 3.0)
        assert shown["z"][1][1] is None

    def test_leaves_the_model_as_it_was(self):
        model = nftk.NFTKMLP(3, [4, 4], 2, dropout=0.5)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        x, y = torch.randn(5, 3), torch.tensor([0, 1, 0, 1, 0])
        assert report(model, x, y) == report(model, x, y)
        assert model.training
        assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


class TestErrors:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"limit": 0}, "limit must be at least 1, got 0"),
            ({"class_names": ["a"]}, "class_names must have one name for each of 2 classes, got 1"),
            ({"images": torch.zeros(4, 2, 2)}, r"images must have shape \[5, height, width\], got \[4, 2, 2\]"),
            ({"loss": "hinge"}, "loss must be one of"),
            ({"y": torch.tensor([0, 1, 2, 0, 1])}, r"y must be in 0\.\.1, got 2"),
            ({"x": torch.full((5, 3), 3e38)}, "model must give finite outputs, got a NaN or inf in row 0"),
        ],
    )
    def test_report(self, change, message):
        given = {"x": torch.randn(5, 3), "y": torch.tensor([0, 1, 0, 1, 0])} | change
        with pytest.raises(ValueError, match=f"nftk.interpret.report: {message}"):
            report(nftk.NFTKMLP(3, [4], 2), given.pop("x"), given.pop("y"), **given)

    def test_command(self, run, tmp_path):
        cases = {
            (run[0],): "--out must not be there yet",
            (run[0], "--out", run[0] / "summary.json", "--overwrite"): "--out must not be a file of the run itself",
            (run[0], "--out", tmp_path / "no" / "a.html"): "--out must be a file in a folder that exists",
            (run[0], "--out", tmp_path): "--out must be a file in a folder that exists",
            (run[0], "--out", tmp_path / "a.html", "--limit", 0): "--limit must be at least 1, got 0",
            (tmp_path,): "must be a run of nftk train, got no config.json there",
            (run[0], "--out", tmp_path / "a.html", "--data", "nowhere"): "neither a name nor a path that exists",
        }
        before = {path.name: path.read_bytes() for path in run[0].iterdir()}
        for arguments, message in cases.items():
            done = command("report", *arguments)
            assert done.returncode == 2, arguments
            assert message in done.stderr
            assert len(done.stderr.splitlines()) == 1
        assert before == {path.name: path.read_bytes() for path in run[0].iterdir()}
        assert not list(tmp_path.iterdir())

    def test_damaged_history(self, run, tmp_path):
        for name in ("config.json", "model.safetensors", "summary.json"):
            (tmp_path / name).write_bytes((run[0] / name).read_bytes())
        whole = json.loads((run[0] / "history.jsonl").read_text().splitlines()[0])
        wrong = [{"epoch": "two"}, {"loss": None}, {"zeros": 1.5}, {"test_accuracy": True}]
        for text in ('{"epoch": 1}\n', "x\n", "[]\n", *(json.dumps(whole | change) + "\n" for change in wrong)):
            (tmp_path / "history.jsonl").write_text(text)
            done = command("report", tmp_path)
            assert done.returncode == 2
            assert "history.jsonl must hold a record of an epoch in each line" in done.stderr
        (tmp_path / "history.jsonl").unlink()
        pages = []
        for damage in (None, "{", "[1]"):
            (tmp_path / "summary.json").unlink(missing_ok=True)
            if damage is not None:
                (tmp_path / "summary.json").write_text(damage)
            done = command("report", tmp_path, "--overwrite")
            assert done.returncode == 0, done.stderr
            assert "summary.json is missing or damaged" in done.stdout
            pages.append(Page((tmp_path / "report.html").read_text(encoding="utf-8")).text)
        assert "What the training left summary.json is missing or damaged, and what it tells is not here" in pages[0]
        assert pages[0] == pages[1] == pages[2]
        assert "summary.json" not in Page((run[0] / "report.html").read_text(encoding="utf-8")).text

    def test_run_is_checked_before_the_rest(self, tmp_path):
        done = command("report", tmp_path / "nowhere")
        assert done.returncode == 2
        assert "nowhere must be a run of nftk train, got no config.json there" in done.stderr

    def test_other_data_are_told(self, run, tmp_path):
        from nftk.cli.report import _names

        split = load_run(run[0]).data
        parts = {name: getattr(split, name)[:40].numpy() for name in ("x_train", "y_train", "x_test", "y_test")}
        parts["y_train"] = parts["y_train"].copy()
        parts["y_train"][:10] = range(10)
        np.savez(tmp_path / "other.npz", **parts)
        done = command("report", run[0], "--data", tmp_path / "other.npz", "--out", tmp_path / "a.html", "--json")
        assert done.returncode == 0, done.stderr
        result = json.loads(done.stdout)
        assert (result["trained_on"], result["data"]) == ("digits", "other.npz")
        told = Page((tmp_path / "a.html").read_text(encoding="utf-8")).text
        assert told.startswith("NFT-K report: digits, shown on other.npz")
        assert "– 10 on digits, shown on other.npz" in told
        assert "Trained on digits Shown on other.npz, 40 examples: not the data that it was trained on" in told
        assert "Test data" not in told
        assert command("report", run[0], "--data", "digits", "--out", tmp_path / "b.html").returncode == 0
        assert (tmp_path / "b.html").read_bytes() == (run[0] / "report.html").read_bytes()
        # two files of one name are told apart by their folders
        assert _names("/a/x.npz", "/b/x.npz") == ("/a/x.npz", "/b/x.npz")
        assert _names("/a/x.npz", "/a/../a/x.npz") == ("x.npz", None)

    def test_training_anew_takes_the_report_away(self, hostile, tmp_path):
        shutil.copytree(hostile, tmp_path / "run")
        data = json.loads((hostile / "config.json").read_text())["data"]
        done = command("train", "--data", data, "--out", tmp_path / "run", "--epochs", 0, "--overwrite")
        assert done.returncode == 0, done.stderr
        assert not (tmp_path / "run" / "report.html").exists()


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium, that of the system."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is missing: pip install playwright")
    found = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
    if found is None:
        pytest.skip("no chromium is on the PATH: apt-get install chromium")
    with playwright.sync_playwright() as session:
        # a sandbox needs rights that a container may not give; the page is our own
        opened = session.chromium.launch(executable_path=found, args=["--no-sandbox"], timeout=120_000)
        yield opened
        opened.close()


class TestBrowser:
    FILL = "getComputedStyle(document.querySelector('[data-figure] .xtick text')).fill"

    def open(self, browser, folder, width, scheme):
        """The page, and all that a browser has to complain about."""
        page, trouble = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme), []
        address = (folder / "report.html").as_uri()
        page.on("console", lambda message: trouble.append(message.text))
        page.on("pageerror", lambda error: trouble.append(str(error)))
        page.on("requestfailed", lambda request: trouble.append(request.url))
        page.on("request", lambda r: None if r.url == address or r.url.startswith("data:") else trouble.append(r.url))
        page.on("dialog", lambda dialog: trouble.append(dialog.message))
        page.goto(address, timeout=120_000)
        return page, trouble

    def ground(self, page):
        return [int(c) for c in re.findall(r"\d+", page.evaluate("getComputedStyle(document.body).backgroundColor"))]

    @pytest.mark.parametrize("which", ["digits", "hostile"])
    def test_opens(self, browser, run, hostile, which):
        page, trouble = self.open(browser, run[0] if which == "digits" else hostile, 390, "dark")
        undrawn = "[...document.querySelectorAll('[data-figure]')].filter(b => !b.querySelector('svg.main-svg')).length"
        assert page.evaluate("document.querySelectorAll('[data-figure]').length") == 23
        assert page.evaluate(undrawn) == 0
        # each layer of a heat map is one image, and a bar or a point is a path
        assert page.evaluate("document.querySelectorAll('[data-figure] .heatmaplayer image').length") == 7
        assert page.evaluate("document.querySelectorAll('[data-figure] .barlayer .point path').length") > 12
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        assert max(self.ground(page)) < 60
        assert min(self.text_colours(page)) > 180
        dark = page.evaluate(self.FILL)
        page.emulate_media(color_scheme="light")
        # the figures follow the page
        page.wait_for_function("dark => " + self.FILL + " !== dark", arg=dark, timeout=120_000)
        assert max(self.text_colours(page)) < 80
        assert min(self.ground(page)) > 200
        assert trouble == []
        page.close()

    def text_colours(self, page):
        return [int(c) for c in re.findall(r"\d+", page.evaluate(self.FILL))]

    def test_hovering_tells_the_value(self, browser, run):
        page, trouble = self.open(browser, run[0], 1280, "light")
        drawn = page.locator('[data-figure="figure2-omega-data"]')
        drawn.scroll_into_view_if_needed()
        box = drawn.locator(".heatmaplayer image").bounding_box()
        page.mouse.move(box["x"] + box["width"] / 6, box["y"] + box["height"] / 20)
        told = drawn.locator(".hoverlayer .hovertext")
        told.wait_for(timeout=120_000)
        omega = nftk.NFTKMLP.load(run[0] / "model.safetensors").omega.detach().double().numpy()
        weight = (omega / np.linalg.norm(omega, axis=1, keepdims=True))[0, 0]
        text = told.text_content()
        assert "class 0, layer 1" in text
        assert f"weight {weight:.3g}" in text
        assert page.evaluate("document.documentElement.scrollWidth") <= 1280
        assert trouble == []
        page.close()
