"""python -m gpt2.inspect trace: the page holds the trace, and its script does what it says."""
from __future__ import annotations

import base64
import json
import math
import shutil

import numpy as np
import pytest
from tiny_gpt2 import tiny_tokenizer

from gpt2.inspect import page
from gpt2.model import GPT2


def decoded(text, shape):
    return np.frombuffer(base64.b64decode(text), "<f4").reshape(shape)


def data_of(path):
    text = path.read_text("utf-8")
    return json.loads(text.split('id="data">')[1].split("</script>")[0])


@pytest.mark.parametrize("values", [1_500_000, 4000])
def test_values_on_the_page_are_the_trace(run, folder, tmp_path, values):
    """Every point of the model is there, whole or thinned, to the bit; statistics are those of the whole."""
    code, _, err = run("trace", "--model", folder, "--ids", "5,6,7,8,9", "--out", tmp_path / "t.html", "--values", values)
    assert code == 0, err
    model, found = GPT2.from_pretrained(folder), data_of(tmp_path / "t.html")
    wanted = model.trace([[5, 6, 7, 8, 9]])
    assert [t["name"] for t in found["tensors"]] == list(model.points())
    for t in found["tensors"]:
        whole = wanted[t["name"]].reshape(t["shape"])
        np.testing.assert_array_equal(decoded(t["data"], t["kept"]), whole[tuple(slice(None, None, s) for s in t["steps"])])
        assert t["max"] == whole.max() and t["norm"] == pytest.approx(np.linalg.norm(whole), rel=1e-5)
    kept = sum(math.prod(t["kept"]) for t in found["tensors"])
    assert kept <= values and (values < 10_000) == any(s > 1 for t in found["tensors"] for s in t["steps"])
    logits = wanted["logits"][0]
    np.testing.assert_array_equal(decoded(found["logits"]["data"], logits.shape), logits)
    assert found["best"] == np.argsort(-logits, -1, kind="stable")[:, :20].tolist()
    np.testing.assert_allclose(found["norms"][found["norm_names"].index("blocks.1.resid_post")],
                               np.linalg.norm(wanted["blocks.1.resid_post"][0], axis=-1), rtol=1e-6)


def test_the_page_takes_any_text_and_needs_no_network(run, tmp_path):
    """A token that would end the script does not; no address is in it."""
    assert run("trace", "--prompt", "</script><b>&'\"", "--out", tmp_path / "t.html")[0] == 0
    text = (tmp_path / "t.html").read_text("utf-8")
    assert text.count("</script>") == 2 and "http" not in text.replace("http-equiv", "")
    assert "".join(data_of(tmp_path / "t.html")["tokens"]) == "</script><b>&'\""


def test_no_text_ends_the_script():
    """Whatever a model is called."""
    text = page.html({"what": "</script><!--"}).decode()
    assert text.count("</script>") == 2 and "<!--" not in text
    assert json.loads(text.split('id="data">')[1].split("</script>")[0])["what"] == "</script><!--"


def test_thinning():
    assert page.sampling_steps((4, 100, 100), 10_000) == [1, 2, 2] and page.sampling_steps((3, 5), 15) == [1, 1]
    assert page.limit_for([10, 100, 1000], 210) == 100 and page.limit_for([10, 100, 1000], 120) == 55 and page.limit_for([5], 9) == 5


SAYS = """<script>
const problems = [];
window.addEventListener("error", e => problems.push(e.message));
window.addEventListener("securitypolicyviolation", e => problems.push(e.violatedDirective));
console.error = console.warn = (...a) => problems.push(a.join(" "));
</script>"""
TURNS = """<script>
const cells = () => [...document.querySelectorAll("#next tr")].slice(1).map(r => [...r.children].slice(1, 4).map(c => c.textContent));
const said = { before: cells() };
const slider = document.getElementById("temperature");
slider.value = "0.3"; slider.dispatchEvent(new Event("input"));
said.after = cells(); said.tau = document.getElementById("tau").textContent;
document.querySelectorAll("#tokens button")[1].click();
said.second = cells();
document.getElementById("layer").selectedIndex = 1; document.getElementById("layer").dispatchEvent(new Event("change"));
document.querySelectorAll("#heads button")[1].click();
const large = document.getElementById("pattern"), box = large.getBoundingClientRect();
large.dispatchEvent(new PointerEvent("pointermove", { clientX: box.left + 1.5 * box.width / 5, clientY: box.top + 3.5 * box.height / 5 }));
said.cell = document.getElementById("pattern-said").textContent;
said.rows = document.querySelectorAll("#tensors tr.pick").length;
document.querySelectorAll("#tensors tr.pick").forEach((_, i) => document.querySelectorAll("#tensors tr.pick")[i].click());
said.last = document.getElementById("tensor-name").textContent;
said.wide = document.documentElement.scrollWidth <= window.innerWidth;
said.problems = problems;
document.body.innerHTML = ""; document.body.textContent = "SAID" + JSON.stringify(said) + "DIAS";
</script>"""


@pytest.mark.parametrize("width", [1280, 500])
def test_the_page_in_a_browser(run, folder, tmp_path, width):
    """No console errors; the slider changes the table to softmax(logits/T); places, blocks, heads and every tensor can be chosen."""
    import subprocess

    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium here; the page's script is not run")
    run("trace", "--model", folder, "--ids", "5,6,7,8,9", "--out", tmp_path / "t.html")
    text = (tmp_path / "t.html").read_text("utf-8")
    (tmp_path / "watched.html").write_text(text.replace("<style>", SAYS + "<style>").replace("</body>", TURNS + "</body>"), "utf-8")
    done = subprocess.run([browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
                           "--disable-background-networking", "--disable-component-update", "--disable-sync", f"--window-size={width},1500",
                           f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=2000", "--dump-dom",
                           (tmp_path / "watched.html").as_uri()], capture_output=True, timeout=120)
    import html as entities

    out = entities.unescape(done.stdout.decode())
    said = json.loads(out[out.index("SAID{") + 4:out.rindex("}DIAS") + 1])
    assert said["problems"] == [] and said["tau"] == "2.00" and said["wide"]
    found = GPT2.from_pretrained(folder).trace([[5, 6, 7, 8, 9]])
    logits, known = found["logits"][0].astype(np.float64), tiny_tokenizer().n_vocab

    def table(place, tau):
        row = logits[place, :known]
        p = np.exp(row / tau)
        return [[str(i), f"{row[i]:.4f}", f"{p[i] / p.sum():.6f}"] for i in np.argsort(-row, kind="stable")[:20]]

    assert said["before"] == table(4, 1.0)
    for mine, wanted in ((said["after"], table(4, 10 ** 0.3)), (said["second"], table(1, 10 ** 0.3))):
        assert [row[:2] for row in mine] == [row[:2] for row in wanted]
        # the page's float64 may round a sixth digit otherwise
        np.testing.assert_allclose([float(row[2]) for row in mine], [float(row[2]) for row in wanted], rtol=0, atol=1.01e-6)
    assert said["cell"].startswith("head 1: from “") and said["cell"].endswith(f": {found['blocks.1.attn.pattern'][0, 1, 3, 1]:.4g}")
    assert said["rows"] == len(found) and said["last"].startswith("logits [5,300]")
