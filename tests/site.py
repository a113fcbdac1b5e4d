"""The documentation site, in a real browser: mathematics is drawn, search finds a name, the API says units.

    python tests/site.py [--keep FOLDER]

Builds the site (tools/docs.py), serves it on a free port and opens it in headless Chromium with every other host
blocked, so that nothing can come from a network. Needs chromium, chromedriver, selenium and mkdocs-material;
without them it says so and ends with code 77 (skipped). With --keep, the site and screenshots stay in FOLDER.
"""
import argparse, functools, http.server, importlib.util, subprocess, sys, tempfile, threading, time
from pathlib import Path

root = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(root/'tests'))
from browser import programs

class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args): pass

def serve(folder):
    "The site on a free port; returns the server, which remembers what it could not find, and its address."
    class Handler(Quiet):
        def send_error(self, code, *args, **kw):
            server.failed.append(f'{code} {self.path}')
            super().send_error(code, *args, **kw)
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), functools.partial(Handler, directory=str(folder)))
    server.failed = []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server, f'http://127.0.0.1:{server.server_port}'

def chrome(chromium, driver, folder):
    "Headless Chromium that reaches no host but this machine."
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    flags = ('--headless=new', '--no-sandbox', '--disable-dev-shm-usage', '--disable-gpu', '--window-size=1400,1000',
             '--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1', f'--user-data-dir={folder}/profile')
    for flag in flags: options.add_argument(flag)
    options.set_capability('goog:loggingPrefs', {'browser': 'ALL'})
    return webdriver.Chrome(options=options, service=Service(driver))   # a path: selenium then downloads nothing

def wait(what, test, seconds=60):
    "The first true answer of `test`."
    end = time.time() + seconds
    while time.time() < end:
        if answer := test(): return answer
        time.sleep(.2)
    raise TimeoutError(f'{what}: not within {seconds} s')

def resize(b, width, height):
    size = dict(width=width, height=height, deviceScaleFactor=1, mobile=width < 600)
    b.execute_cdp_cmd('Emulation.setDeviceMetricsOverride', size)

def shot(b, keep, name, widths=(1400, 390)):
    "Screenshots at the width of a desk and of a telephone."
    for width in widths if keep else ():
        resize(b, width, 1200)
        time.sleep(.5)
        b.save_screenshot(str(keep/f'{name}_{width}.png'))
    b.execute_cdp_cmd('Emulation.clearDeviceMetricsOverride', {})

def check_formula(b, url, keep):
    "A formula is set in MathJax's own font, and no TeX is left on the page."
    b.get(f'{url}/05_projector.html')
    ask = b.execute_script
    wait('a formula', lambda: ask("return document.querySelector('.MathJax')"))
    busy = "return document.querySelector('.MathJax_Processing, .MathJax_Preview:not(:empty)')"
    wait('the end of the typesetting', lambda: not ask(busy))
    drawn = "[...document.querySelectorAll('.MathJax')].filter(e => e.getBoundingClientRect().width > 20)"
    glyphs = ask(f'return {drawn}.map(e => e.textContent)')
    assert any('∫' in g and 'μ' in g for g in glyphs), glyphs[:5]
    font = "f => /STIXMathJax/.test(f.family) && f.status == 'loaded'"
    wait('its font', lambda: ask(f'return [...document.fonts].some({font})'))
    left = ask("return document.querySelector('article').innerText.match(/\\$\\$|\\\\(frac|mathrm|int)\\b/g)")
    assert not left, left
    shot(b, keep, 'formula')

def check_search(b, url, keep):
    "Typing `Projector` into the search finds its page in the API."
    b.get(f'{url}/index.html')
    b.execute_script("document.querySelector('#__search').click()")
    b.find_element('css selector', 'input.md-search__input').send_keys('Projector')
    links = "return [...document.querySelectorAll('.md-search-result__link')].map(a => a.href)"
    found = wait('a search result', lambda: b.execute_script(links))
    assert any('api/' in f and '#Projector' in f for f in found), found
    shot(b, keep, 'search', (1400,))

def check_api(b, url, keep):
    "Every parameter of `Geometry` is a row with its type, default and unit."
    b.get(f'{url}/api/index.html')
    pages = b.execute_script("return [...document.querySelectorAll('article table a')].map(a => a.href)")
    rows = []
    for page in (p for p in pages if 'projector' in p or 'geometry' in p):
        b.get(page)
        cells = "[...document.querySelectorAll('article tr')].map(r => [...r.cells].map(c => c.innerText))"
        rows += b.execute_script(f'return {cells}')
        if any(r[0] == 'sdd' for r in rows): break
    sdd = next((r for r in rows if r[0] == 'sdd'), None)
    assert sdd and sdd[1] == 'float' and sdd[2].startswith('1800') and 'mm' in sdd[3], sdd
    shot(b, keep, 'api')

def check_pictures(b, url, keep):
    "The first page shows its pictures, and nothing on it is wider than a telephone."
    b.get(f'{url}/index.html')
    images = "[...document.querySelectorAll('article img')].map(i => [i.src, i.naturalWidth])"
    sizes = wait('pictures', lambda: b.execute_script(f'return {images}'))
    assert all(src.startswith(url) and width > 200 for src, width in sizes), sizes
    shot(b, keep, 'home')
    resize(b, 390, 800)
    assert b.execute_script('return document.documentElement.scrollWidth') <= 390
    b.execute_cdp_cmd('Emulation.clearDeviceMetricsOverride', {})

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--keep', type=Path, help='keep the site and screenshots in this folder')
    a = p.parse_args()
    found = programs()
    absent = [m for m in ('mkdocs', 'material', 'jupyter_server_mathjax') if importlib.util.find_spec(m) is None]
    if isinstance(found, str) or absent:
        missing = f'{", ".join(absent)} not installed (pip install -e ".[dev]")'
        print('skipped:', found if isinstance(found, str) else missing)
        sys.exit(77)
    with tempfile.TemporaryDirectory(prefix='xray_ct_site_', ignore_cleanup_errors=True) as d:
        site = (a.keep or Path(d))/'site'
        if a.keep: a.keep.mkdir(parents=True, exist_ok=True)
        made = subprocess.run([sys.executable, root/'tools/docs.py', site], capture_output=True, text=True)
        if made.returncode: sys.exit(made.stdout + made.stderr)
        print(made.stdout.splitlines()[-1])
        server, url = serve(site)
        b = chrome(*found, d)
        failed = 0
        try:
            for check in (check_formula, check_search, check_api, check_pictures):
                try: check(b, url, a.keep)
                except Exception as e:
                    failed += 1
                    print(f'FAIL {check.__name__}: {type(e).__name__}: {e}')
                else: print(f'PASS {check.__name__}: {check.__doc__}')
            lost = sorted({f for f in server.failed if 'favicon' not in f})
            if lost: failed += 1; print('FAIL files that the site lacks:', ', '.join(lost))
            else: print('PASS every file that a page asked for is in the site')
        finally:
            b.quit(); server.shutdown()
    print(f'{5 - failed} passed, {failed} failed')
    sys.exit(bool(failed))

if __name__ == '__main__': main()
