"""The files in deploy/: manifests against Kubernetes' own schemas, the rendered overlays too where kubectl is at hand, the shell
script by bash and shellcheck, the image's pins; and the training's command, taken from its manifest as it stands, run here by
two pods of one process each on CPUs: each in turn is killed, the run goes on and ends, and what it wrote is a finished run.

    python tests/deploy.py
"""
import contextlib, os, re, shutil, signal, socket, subprocess, sys, tempfile, time
from pathlib import Path
import jsonschema, yaml
import kubernetes_validate

root = Path(__file__).resolve().parent.parent
deploy, versions = root/'deploy', ('1.29', '1.37')  # the oldest that knows what is used here, and a new one
bin = Path(sys.executable).parent

# The operator's own schema isn't at hand offline: this is its outer part, by the published types of kubeflow.org/v1. What is inside a pod is judged by Kubernetes' schema.
def fields(required=(), **properties): return dict(type='object', additionalProperties=False, required=list(required), properties=properties)
integer, text, boolean = dict(type='integer', minimum=0), dict(type='string'), dict(type='boolean')
replica = fields(['replicas', 'template'], replicas=integer, template={'type': 'object'}, restartPolicy={'enum': ['Always', 'OnFailure', 'Never', 'ExitCode']})
pytorch_job = fields(['apiVersion', 'kind', 'metadata', 'spec'], apiVersion={'const': 'kubeflow.org/v1'}, kind={'const': 'PyTorchJob'}, metadata={'type': 'object'}, spec=fields(['pytorchReplicaSpecs'],
    nprocPerNode=text, pytorchReplicaSpecs=fields(Master=replica, Worker=replica),
    runPolicy=fields(cleanPodPolicy={'enum': ['All', 'Running', 'None']}, ttlSecondsAfterFinished=integer, activeDeadlineSeconds=integer, backoffLimit=integer, suspend=boolean, managedBy=text, schedulingPolicy={'type': 'object'}),
    elasticPolicy=fields(minReplicas=integer, maxReplicas=integer, rdzvBackend={'enum': ['c10d', 'etcd', 'etcd-v2']}, rdzvPort=integer, rdzvHost=text, rdzvId=text, rdzvConf={'type': 'array'}, standalone=boolean, maxRestarts=integer, metrics={'type': 'array'})))

def check(doc):
    "One object against the schemas of its kind; the pods of a PyTorchJob as pod templates."
    if doc['kind'] == 'PyTorchJob':
        jsonschema.validate(doc, pytorch_job)
        s = doc['spec']
        assert s['elasticPolicy']['minReplicas'] <= s['pytorchReplicaSpecs']['Worker']['replicas'] == s['elasticPolicy']['maxReplicas'], s
        for r in s['pytorchReplicaSpecs'].values():
            assert 'pytorch' in [c['name'] for c in r['template']['spec']['containers']], 'the operator looks for a container of this name'
            assert str(r['template']['spec']['containers'][0]['resources']['limits']['nvidia.com/gpu']) == s['nprocPerNode'], 'one process a GPU'
            check(dict(apiVersion='v1', kind='PodTemplate', metadata=dict(name='x'), template=r['template']))
    elif doc['kind'] != 'Kustomization':
        for v in versions: kubernetes_validate.validate(doc, v, strict=True)
    for pod in pods(doc):
        assert pod['securityContext']['runAsNonRoot'] and pod['securityContext']['runAsUser'], doc['metadata']
        for c in pod['containers']:
            assert c['securityContext'] == dict(allowPrivilegeEscalation=False, readOnlyRootFilesystem=True, capabilities=dict(drop=['ALL'])), c['name']
            assert {m['name'] for m in c['volumeMounts']} == {v['name'] for v in pod['volumes']}, c['name']

def pods(doc):
    "Every pod's spec in an object."
    if isinstance(doc, list): return [p for d in doc for p in pods(d)]
    if not isinstance(doc, dict): return []
    return [doc] if 'containers' in doc else [p for d in doc.values() for p in pods(d)]

def together(docs):
    "What one file cannot see: shards, and patients for every GPU."
    kind = {d['kind']: d for d in docs}
    data, train = kind['ConfigMap']['data'], kind['PyTorchJob']['spec']
    assert int(data['SHARDS']) == kind['Job']['spec']['completions']
    assert int(data['BATCH_SIZE']) >= train['elasticPolicy']['maxReplicas']*int(train['nprocPerNode'])
    assert {v['persistentVolumeClaim']['claimName'] for p in pods(docs) for v in p['volumes'] if 'persistentVolumeClaim' in v} == {d['metadata']['name'] for d in docs if d['kind'] == 'PersistentVolumeClaim'}
    for p in pods(docs):
        for c in p['containers']:
            used = set(re.findall(r'\$\(?([A-Z_]+)', ' '.join([*c.get('command', []), *c.get('args', [])]))) - {'JOB_COMPLETION_INDEX'}
            assert used <= set(data), f'{c["name"]} wants {used - set(data)}'

def manifests():
    base = [d for f in sorted((deploy/'kubernetes/base').glob('*.yaml')) for d in yaml.safe_load_all(f.read_text())]
    for d in base: check(d)
    together(base)
    broken = yaml.safe_load((deploy/'kubernetes/base/train.yaml').read_text())      # does the check see a wrong field?
    pods(broken)[0]['containers'][0]['imagePolicy'] = 'Always'
    try: check(broken)
    except kubernetes_validate.ValidationError: pass
    else: raise AssertionError('a field that does not exist was let through')
    rendered = 'not rendered: no kubectl here'
    if shutil.which('kubectl'):
        for overlay in sorted((deploy/'kubernetes/overlays').iterdir()):
            docs = list(yaml.safe_load_all(subprocess.run(['kubectl', 'kustomize', overlay], check=True, capture_output=True, text=True).stdout))
            for d in docs: check(d)
            together(docs)
            assert all(c['image'] == 'xray-ct:0.2.0' for p in pods(docs) for c in p['containers']), 'an image without its version'
        rendered = 'both overlays rendered'
    print(f'{len(base)} objects fit the schemas of Kubernetes {" and ".join(versions)}; {rendered}', flush=True)

def scripts():
    script, image = deploy/'train.sbatch', (deploy/'Containerfile').read_text()
    subprocess.run(['bash', '-n', script], check=True)
    subprocess.run([bin/'shellcheck', script], check=True)
    with tempfile.TemporaryDirectory() as d:   # out of time: the step is told, the job goes back into the queue
        d = Path(d)
        for name, text in dict(srun='exec "$@"', scontrol='[ "$1" = requeue ] && echo "$2" > "$SAID/requeued" || echo node1', torchrun='trap "echo stopped > $SAID/stopped; exit 1" TERM; echo "$@" > "$SAID/arguments"; sleep 60 & wait').items():
            (d/name).write_text(f'#!/usr/bin/env bash\n{text}\n'); (d/name).chmod(0o755)
        env = {**os.environ, 'SAID': str(d), 'PATH': f'{d}:{os.environ["PATH"]}', 'SLURM_NNODES': '2', 'SLURM_GPUS_ON_NODE': '4', 'SLURM_JOB_ID': '17', 'SLURM_JOB_NODELIST': 'node[1-2]'}
        job = subprocess.Popen(['bash', script, '/my cts', '/run', '--epochs', '3'], env=env, start_new_session=True)
        while not ((d/'arguments').exists() and (d/'arguments').read_text()): time.sleep(.05)
        job.terminate()
        assert job.wait(20) == 143 and (d/'requeued').read_text() == '17\n' and (d/'stopped').exists()
        said = (d/'arguments').read_text()
        assert said.startswith('--nnodes 2 --nproc_per_node 4 ') and '--rdzv_endpoint node1:29400' in said and said.endswith('--no-python xray_ct train /my cts --out /run --epochs 3\n'), said
        with contextlib.suppress(ProcessLookupError): os.killpg(job.pid, signal.SIGKILL)       # the stand-in's sleep
    assert re.search(r'^ARG BASE=\S+:\d[\w.-]+$', image, re.M) and re.search(r'^USER [1-9]\d*:', image, re.M)
    for line in re.findall(r'^COPY (?!--from)(.+) \S+$', image, re.M):
        for name in line.split(): assert (root/name).exists(), name
    pins = dict(re.findall(r'^([\w-]+)==(\S+)$', (deploy/'constraints.txt').read_text(), re.M))
    assert {'torch', 'fastai', 'monai'} <= set(pins)

def pod(job, data, port, node):
    "What kubelet and operator make of the training's container, here: the command with its variables filled in, and the environment."
    c = pods(job)[0]['containers'][0]
    command = [re.sub(r'\$\((\w+)\)', lambda m: data[m[1]], str(a)) for a in c['command'] + c['args']]
    env = {**os.environ, **data, **{e['name']: e['value'] for e in c['env']}, 'PATH': f'{bin}:{os.environ["PATH"]}', 'OMP_NUM_THREADS': '1', 'PET_NNODES': '1:2', 'PET_NPROC_PER_NODE': '1', 'PET_MAX_RESTARTS': '10',
           'PET_RDZV_BACKEND': 'c10d', 'PET_RDZV_ENDPOINT': f'localhost:{port}', 'PET_RDZV_ID': 'xray-ct-train', 'PET_RDZV_CONF': f'is_host={int(node == 0)}'}
    return subprocess.Popen(command, env=env, stdout=open(Path(data['RUN']).with_suffix(f'.{node}.log'), 'a'), stderr=subprocess.STDOUT, start_new_session=True)

def epochs(run): return len((run/'log.csv').read_text().splitlines()) - 1 if (run/'log.csv').exists() else 0

def train():
    from xray_ct.data.phantom import write_cohort
    from xray_ct.files import read_json
    docs = [d for n in ('settings', 'train') for d in yaml.safe_load_all((deploy/f'kubernetes/base/{n}.yaml').read_text())]
    folder = Path(tempfile.mkdtemp(prefix='xray_ct_deploy_'))
    write_cohort(folder/'cts', n=12, size=32, spacing=10.)
    run = folder/'run'
    data = docs[0]['data'] | dict(CTS=str(folder/'cts'), CACHE=str(folder/'cache'), RUN=str(run), PRESET='tiny', SIZE='16', SPACING='20', EPOCHS='6', BATCH_SIZE='4', WORKERS='0')
    with socket.socket() as s: s.bind(('127.0.0.1', 0)); port = s.getsockname()[1]
    def wait(ready, limit=240):
        until = time.time() + limit
        while not ready():
            if time.time() > until or any(p.poll() for p in nodes): raise AssertionError('\n'.join(f.read_text()[-3000:] for f in folder.glob('*.log')))
            time.sleep(.05)
    nodes = [pod(docs[1], data, port, n) for n in (0, 1)]
    try:
        for node, done in ((1, 1), (0, 3)):                                            # torchrun brings all of them together again
            wait(lambda: epochs(run) >= done)
            os.kill(int(Path(f'/proc/{nodes[node].pid}/task/{nodes[node].pid}/children').read_text().split()[0]), signal.SIGKILL)
        wait(lambda: all(p.poll() == 0 for p in nodes))
    finally:
        for p in nodes:
            if p.poll() is None: os.killpg(p.pid, signal.SIGKILL)
    said, info = run.with_suffix('.0.log').read_text(), read_json(run/'run.json')
    assert info['finished'] and info['epochs'] == 6 and info['provenance']['processes'] == 2, info
    again = re.findall('Resuming after epoch ([0-9]+)', said)
    assert len(again) == 2, said[-3000:]
    assert (run/'metrics.json').exists() and (run/'model.safetensors').exists()
    print(f'{" ".join(docs[1]["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]["spec"]["containers"][0]["command"])} …: two pods, a worker of each killed, resumed after epochs {" and ".join(again)}, finished')
    shutil.rmtree(folder)

if __name__ == '__main__':
    manifests(); scripts(); train()
