"""What only a browser can tell: the viewer in JupyterLab, and a report at the width of a telephone.

    python tests/browser.py [--keep FOLDER]

Opens a small notebook in JupyterLab in headless Chromium, clicks "Run All Cells", moves sliders, and checks that
the pictures and the HU readout followed. Takes about 20 s. Needs chromium, chromedriver and selenium
(Debian: apt-get install chromium chromium-driver); without them it says so and ends with code 77 (skipped).
The last line is `N passed, N failed`. With --keep, screenshots and the server's log stay in FOLDER.
"""
import argparse, importlib.util, json, os, secrets, shutil, socket, subprocess, sys, tempfile, time, urllib.request
from pathlib import Path

root = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(root/'tools'))
from machines import slowness
cells = ['''from xray_ct.data.phantom import thorax
from xray_ct.projector import Geometry, render
from xray_ct.viewer import Viewer
truth = thorax(seed=1, size=32, spacing=10.)
prediction = truth.with_array(truth.array + 50)
g = Geometry.for_field(field=320., size=32, det=64)''',
'Viewer(prediction, truth, render(truth, g)[0], g)']

def programs():
    "(chromium, chromedriver), or a sentence that says what is missing."
    for library in ('selenium', 'jupyterlab'):
        if importlib.util.find_spec(library) is None: return f'{library} is not installed (pip install -e ".[dev]")'
    names = 'chromium', 'chromium-browser', 'google-chrome', 'google-chrome-stable'
    chromium, driver = next(filter(None, map(shutil.which, names)), None), shutil.which('chromedriver')
    if chromium and driver: return chromium, driver
    return 'chromium or chromedriver is not installed (Debian: apt-get install chromium chromium-driver)'

def patience(seconds):
    "What a quiet machine of reference would get, times how slow this one is. Everything that is waited for uses it."
    return 2*seconds*slowness().wall

def browser(chromium, driver, folder):
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for a in ('--headless=new', '--no-sandbox', '--disable-dev-shm-usage', '--disable-gpu', '--window-size=1300,1100',
              f'--user-data-dir={folder}/profile'): options.add_argument(a)
    options.set_capability('goog:loggingPrefs', {'browser': 'ALL'})
    b = webdriver.Chrome(options=options, service=Service(driver))  # a path: selenium then downloads nothing
    b.set_script_timeout(patience(60))
    b.set_page_load_timeout(patience(60))
    return b

def lab(folder):
    "Start JupyterLab on a free port with its settings in `folder`; returns the process and its address."
    import nbformat.v4 as v4
    kernel = {'name': 'python3', 'display_name': 'python3', 'language': 'python'}
    nb = v4.new_notebook(cells=[v4.new_code_cell(c) for c in cells], metadata={'kernelspec': kernel})
    (folder/'viewer.ipynb').write_text(json.dumps(nb))
    with socket.socket() as s: s.bind(('127.0.0.1', 0)); port = s.getsockname()[1]
    token = secrets.token_hex(12)
    settings = ('_CONFIG', '_RUNTIME', 'LAB_SETTINGS', 'LAB_WORKSPACES')
    env = {**os.environ, **{f'JUPYTER{n}_DIR': str(folder/n.strip('_').lower()) for n in settings},
           'IPYTHONDIR': str(folder/'ipython'),
           'PYTHONPATH': os.pathsep.join(filter(None, [str(root), os.environ.get('PYTHONPATH')]))}
    flags = dict(ServerApp=dict(ip='127.0.0.1', port=port, port_retries=0, root_dir=str(folder), open_browser=False,
                                allow_root=True),
                 LabApp=dict(expose_app_in_browser=True, news_url='None',
                             check_for_updates_class='jupyterlab.NeverCheckForUpdate'))
    options = [f'--{c}.{k}={v}' for c, d in flags.items() for k, v in d.items()]
    command = [sys.executable, '-m', 'jupyterlab', f'--IdentityProvider.token={token}', *options]
    with open(folder/'lab.log', 'w') as log:
        server = subprocess.Popen(command, env=env, stdout=log, stderr=subprocess.STDOUT)
    answers(server, f'http://127.0.0.1:{port}/api?token={token}', folder)
    return server, f'http://127.0.0.1:{port}/doc/tree/viewer.ipynb?token={token}&reset'

def answers(server, address, folder):
    "Wait until the server does."
    end = time.time() + patience(90)
    while True:
        try: return urllib.request.urlopen(address, timeout=patience(2))
        except OSError:
            if server.poll() is not None or time.time() > end:
                stop(server)
                said = (folder/'lab.log').read_text()[-2000:]
                raise RuntimeError(f'JupyterLab did not start:\n{said}') from None
            time.sleep(.25)

def stop(server):
    "Ask first, so that the server ends its kernel; then insist."
    server.terminate()
    try: server.wait(patience(20))
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait(patience(10))

def find(b, css, test=lambda e: True, seconds=60):
    "The first element that fits, waited for."
    from selenium.common.exceptions import WebDriverException
    end = time.time() + patience(seconds)
    while time.time() < end:
        try:
            for e in b.find_elements('css selector', css):
                if test(e): return e
        except WebDriverException: pass  # it was redrawn under our hands
        time.sleep(.1)
    outputs = [e.text[-500:] for e in b.find_elements('css selector', '.jp-OutputArea-output')]
    raise TimeoutError(f'nothing fitting {css} within {patience(seconds):.0f} s; outputs: {outputs}')

def pictures(b):
    return b.execute_script("return [...document.querySelectorAll('img.widget-image')]"
                            ".map(i => [i.naturalWidth, i.src])")

def changed(b, before, count, seconds=30):
    "Wait until `count` pictures (blob addresses) are new; returns how many were."
    end = time.time() + patience(seconds)
    while True:
        new = sum(n != o for (_, n), (_, o) in zip(pictures(b), before))
        if new >= count or time.time() > end: return new
        time.sleep(.1)

def press(b, css, key, times):
    e = find(b, css)
    b.execute_script('arguments[0].scrollIntoView({block: "center"}); arguments[0].focus()', e)
    for _ in range(times): e.send_keys(key)

def appears(b, address, folder):
    "run all: five pictures and a scale, drawn"
    b.get(address)
    find(b, '.jp-CodeCell')
    find(b, '.jp-Notebook-ExecutionIndicator[data-status="idle"]')
    error = b.execute_async_script("""const done = arguments[arguments.length-1], app = window.jupyterapp;
        (async () => {
            await app.restored;
            const w = app.shell.currentWidget;
            await w.context.ready;
            await w.sessionContext.ready;
            await w.sessionContext.session.kernel.info;
            await w.revealed;
            await app.commands.execute('notebook:run-all-cells');
        })().then(() => done(null), e => done(String(e)))""")
    assert error is None, error
    assert 'voxel 16, 16, 16' in find(b, '.xct-text', lambda e: 'voxel' in e.text, 90).text
    find(b, 'img.widget-image', lambda e: all(w > 0 for w, _ in pictures(b)))
    assert len(pictures(b)) == 6, pictures(b)

def slides(b, address, folder):
    "five key presses on a slider: readout and pictures follow"
    from selenium.webdriver.common.keys import Keys
    before = pictures(b)
    press(b, '.xct-axial .noUi-handle', Keys.ARROW_RIGHT, 5)
    assert 'error +50 HU' in find(b, '.xct-text', lambda e: 'voxel 21, 16, 16' in e.text, 30).text
    assert changed(b, before, 5) >= 5, 'three planes and the marks on two X-rays are new'

def switches(b, address, folder):
    "error mode: its own scale; side by side: twice as high"
    before = pictures(b)
    find(b, '.xct-mode button', lambda e: e.text == 'error').click()
    assert changed(b, before, 4) >= 4, 'three planes and the scale are new'
    height = lambda: b.execute_script("return document.querySelector('img.xct-image-axial').naturalHeight")
    low = height()
    find(b, '.xct-mode button', lambda e: e.text == 'side by side').click()
    find(b, 'img.widget-image', lambda e: height() == 2*low, 30)

def windows(b, address, folder):
    "another window from the list: the planes are new, the X-rays are not"
    from selenium.webdriver.support.ui import Select
    before = pictures(b)
    choice = Select(find(b, '.xct-window select'))
    choice.select_by_visible_text(next(o.text for o in choice.options if o.text.startswith('lung')))
    changed(b, before, 4)
    time.sleep(.5)   # a fifth picture would come now
    assert changed(b, before, 4) == 4, 'three planes and the scale are new, and nothing else'
    assert b.execute_script("return document.documentElement.scrollWidth <= innerWidth"), 'the page scrolls sideways'

def saves(b, address, folder):
    "saving leaves no widget state in the notebook"
    error = b.execute_async_script("""const done = arguments[arguments.length-1];
        window.jupyterapp.commands.execute('docmanager:save').then(() => done(null), e => done(String(e)))""")
    assert error is None, error
    saved = json.loads((folder/'viewer.ipynb').read_text())
    assert saved['cells'][-1]['outputs'], 'the notebook was not saved'
    assert 'widgets' not in saved['metadata']

def report(b, address, folder):
    "a report: nothing fetched, no script error, no sideways scrolling from 320 to 1300 px, dark follows the system"
    from xray_ct.figures import Page
    from xray_ct.provenance import provenance
    from xray_ct.report import Picture, Scores, Settings, Text, write_report
    scores = {'psnr_3d_range2000': 24.3, 'ssim_3d_uniform7_range2000': .7, 'mae_hu': 88.}
    parts = [Text('Summary', 'word '*60), Picture('Wide', Page(16, 9), alt='An empty page.'),
             Scores('Scores', {m: scores for m in ('direct', 'ridge')}),
             Settings('Provenance', provenance(command='x '*200))]
    path = write_report(folder/'report.html', 'A run with a_very_long_name_'*4, parts)
    b.get(path.as_uri())
    b.get_log('browser')
    colours = set()
    for width, scheme in ((320, 'light'), (390, 'dark'), (1300, 'light')):
        screen = dict(width=width, height=900, deviceScaleFactor=1, mobile=width < 600)
        b.execute_cdp_cmd('Emulation.setDeviceMetricsOverride', screen)
        colour = dict(name='prefers-color-scheme', value=scheme)
        b.execute_cdp_cmd('Emulation.setEmulatedMedia', dict(features=[colour]))
        b.get(path.as_uri())
        wide = b.execute_script('return document.documentElement.scrollWidth')
        assert wide <= width, f'{wide} px wide on a screen of {width}'
        assert b.execute_script('return [...document.images].every(i => i.complete && i.naturalWidth > 0)')
        colours.add((scheme, b.execute_script('return getComputedStyle(document.body).backgroundColor')))
    assert len({c for _, c in colours}) == 2, colours
    assert not b.get_log('browser'), 'the console has messages'
    fetched = "return performance.getEntriesByType('resource').filter(r => !r.name.startsWith('data:')).length"
    assert b.execute_script(fetched) == 0

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--keep', type=Path, help='leave screenshots and the log of JupyterLab here')
    keep = p.parse_args().keep
    found = programs()
    if isinstance(found, str):
        print(f'skipped: {found}\n0 passed, 0 failed')
        return 77
    sys.path.insert(0, str(root))
    passed, failed = 0, 0
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as d:
        folder = Path(d)
        server, address = lab(folder)
        b = None
        try:
            b = browser(*found, folder)
            for check in (appears, slides, switches, windows, saves, report):
                t = time.time()
                try:
                    check(b, address, folder)
                    ok, why = True, ''
                except Exception as e: ok, why = False, f'\n     {type(e).__name__}: {e}'
                passed, failed = passed + ok, failed + (not ok)
                print(f'{"PASS" if ok else "FAIL"} {check.__doc__}, {time.time()-t:.1f} s{why}', flush=True)
                if keep:
                    keep.mkdir(parents=True, exist_ok=True)
                    b.save_screenshot(str(keep/f'{check.__name__}.png'))
        finally:
            if b: b.quit()
            stop(server)
            if keep: shutil.copy(folder/'lab.log', keep)
    print(f'{passed} passed, {failed} failed')
    return int(bool(failed or not passed))

if __name__ == '__main__': sys.exit(main())
