"""tools/device_check.py on a CPU: every row is a number or says why not, and the claims' files can be read.

    python tests/device.py    # two minutes
"""
import json, subprocess, sys, tempfile
from pathlib import Path

root = Path(__file__).resolve().parent.parent

def main():
    from xray_ct.claims import read_claims
    from xray_ct.provenance import revision
    if not revision():
        print('skipped: no git repository, and a claim needs a revision')
        sys.exit(77)
    with tempfile.TemporaryDirectory(prefix='xray_ct_device_') as d:
        out = Path(d)/'check.json'
        command = [sys.executable, root/'tools/device_check.py', '--small', '--device', 'cpu', '--out', out]
        ran = subprocess.run(list(map(str, command)), cwd=d, capture_output=True, text=True)
        print(ran.stdout, ran.stderr[-3000:] if ran.returncode else '')
        assert ran.returncode == 0, ran.returncode
        rows = json.loads(out.read_text())['measured']
        unmeasured = {n: r['missing'] for n, r in rows.items() if 'missing' in r}
        assert all('not installed' in why for why in unmeasured.values()), unmeasured
        for part in 'projector', 'items', 'train direct:tiny', 'train direct:base 64', 'lean 32³, slabs', 'claim C6':
            assert any(n.startswith(part) and 'value' in r for n, r in rows.items()), part
        assert rows['items']['value'] > .1
        claims = read_claims(out.parent/'check_claims')
        assert list(claims) == ['C2', 'C3', 'C6'], list(claims)

if __name__ == '__main__': main()
