"""The files in deploy/: manifests against Kubernetes' own schemas, the rendered overlays too where kubectl is at hand,
the shell script by bash and shellcheck, the image's pins. Then the training's command, taken from its manifest, is run
here by two pods of one process each on CPUs: each in turn is killed, the run goes on and ends, and is a finished run.

    python tests/deploy.py
"""
import contextlib, os, re, shutil, signal, socket, subprocess, sys, tempfile, time
from pathlib import Path
import jsonschema, yaml
import kubernetes_validate

root = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(root/'tools'))
from machines import slowness

deploy = root/'deploy'
versions = '1.29', '1.37'  # the oldest that knows what is used here, and a new one
bin = Path(sys.executable).parent

# The operator's own schema is not at hand offline: this is its outer part, by the published types of kubeflow.org/v1.
# What is inside a pod is judged by Kubernetes' schema.
def fields(required=(), **properties):
    return dict(type='object', additionalProperties=False, required=list(required), properties=properties)

def one_of(*values): return dict(enum=list(values))

integer, text, boolean = dict(type='integer', minimum=0), dict(type='string'), dict(type='boolean')
anything, several = dict(type='object'), dict(type='array')
replica = fields(['replicas', 'template'], replicas=integer, template=anything,
                 restartPolicy=one_of('Always', 'OnFailure', 'Never', 'ExitCode'))
policy = fields(
    cleanPodPolicy=one_of('All', 'Running', 'None'), ttlSecondsAfterFinished=integer, activeDeadlineSeconds=integer,
    backoffLimit=integer, suspend=boolean, managedBy=text, schedulingPolicy=anything)
elastic = fields(
    minReplicas=integer, maxReplicas=integer, rdzvBackend=one_of('c10d', 'etcd', 'etcd-v2'), rdzvPort=integer,
    rdzvHost=text, rdzvId=text, rdzvConf=several, standalone=boolean, maxRestarts=integer, metrics=several)
specification = fields(['pytorchReplicaSpecs'], nprocPerNode=text, runPolicy=policy, elasticPolicy=elastic,
                       pytorchReplicaSpecs=fields(Master=replica, Worker=replica))
pytorch_job = fields(
    ['apiVersion', 'kind', 'metadata', 'spec'], apiVersion=one_of('kubeflow.org/v1'), kind=one_of('PyTorchJob'),
    metadata=anything, spec=specification)

def check(doc):
    "One object against the schemas of its kind; the pods of a PyTorchJob as pod templates."
    if doc['kind'] == 'PyTorchJob': check_job(doc)
    elif doc['kind'] != 'Kustomization':
        for v in versions: kubernetes_validate.validate(doc, v, strict=True)
    for pod in pods(doc):
        assert pod['securityContext']['runAsNonRoot'] and pod['securityContext']['runAsUser'], doc['metadata']
        for c in pod['containers']:
            assert c['securityContext'] == closed, c['name']
            assert {m['name'] for m in c['volumeMounts']} == {v['name'] for v in pod['volumes']}, c['name']

closed = dict(allowPrivilegeEscalation=False, readOnlyRootFilesystem=True, capabilities=dict(drop=['ALL']))

def check_job(doc):
    "A PyTorchJob: its own fields, and its pods as pod templates."
    jsonschema.validate(doc, pytorch_job)
    s = doc['spec']
    workers, bounds = s['pytorchReplicaSpecs']['Worker']['replicas'], s['elasticPolicy']
    assert bounds['minReplicas'] <= workers == bounds['maxReplicas'], s
    for r in s['pytorchReplicaSpecs'].values():
        containers = r['template']['spec']['containers']
        assert 'pytorch' in [c['name'] for c in containers], 'the operator looks for a container of this name'
        assert str(containers[0]['resources']['limits']['nvidia.com/gpu']) == s['nprocPerNode'], 'one process a GPU'
        check(dict(apiVersion='v1', kind='PodTemplate', metadata=dict(name='x'), template=r['template']))

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
    volumes = [v for p in pods(docs) for v in p['volumes']]
    claimed = {v['persistentVolumeClaim']['claimName'] for v in volumes if 'persistentVolumeClaim' in v}
    assert claimed == {d['metadata']['name'] for d in docs if d['kind'] == 'PersistentVolumeClaim'}
    for p in pods(docs):
        for c in p['containers']:
            command = ' '.join([*c.get('command', []), *c.get('args', [])])
            used = set(re.findall(r'\$\(?([A-Z_]+)', command)) - {'JOB_COMPLETION_INDEX'}
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
            command = ['kubectl', 'kustomize', overlay]
            text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            docs = list(yaml.safe_load_all(text))
            for d in docs: check(d)
            together(docs)
            images = {c['image'] for p in pods(docs) for c in p['containers']}
            assert images == {'xray-ct:0.2.0'}, 'an image without its version'
        rendered = 'both overlays rendered'
    print(f'{len(base)} objects fit the schemas of Kubernetes {" and ".join(versions)}; {rendered}', flush=True)

def stand_ins(d):
    "Programs of a cluster: each says in a file what it was asked."
    programs = dict(
        srun='exec "$@"',
        scontrol='[ "$1" = requeue ] && echo "$2" > "$SAID/requeued" || echo node1',
        torchrun='trap "echo stopped > $SAID/stopped; exit 1" TERM; echo "$@" > "$SAID/arguments"; sleep 600 & wait')
    for name, text in programs.items():
        (d/name).write_text(f'#!/usr/bin/env bash\n{text}\n')
        (d/name).chmod(0o755)
    return {**os.environ, 'SAID': str(d), 'PATH': f'{d}:{os.environ["PATH"]}', 'SLURM_NNODES': '2',
            'SLURM_GPUS_ON_NODE': '4', 'SLURM_JOB_ID': '17', 'SLURM_JOB_NODELIST': 'node[1-2]'}

def scripts():
    script, image = deploy/'train.sbatch', (deploy/'Containerfile').read_text()
    subprocess.run(['bash', '-n', script], check=True)
    subprocess.run([bin/'shellcheck', script], check=True)
    with tempfile.TemporaryDirectory() as d:   # out of time: the step is told, the job goes back into the queue
        d = Path(d)
        command = ['bash', script, '/my cts', '/run', '--epochs', '3']
        job = subprocess.Popen(command, env=stand_ins(d), start_new_session=True)
        while not ((d/'arguments').exists() and (d/'arguments').read_text()): time.sleep(.05)
        job.terminate()
        assert job.wait(60*slowness().wall) == 143 and (d/'requeued').read_text() == '17\n' and (d/'stopped').exists()
        said = (d/'arguments').read_text()
        assert said.startswith('--nnodes 2 --nproc_per_node 4 ') and '--rdzv_endpoint node1:29400' in said, said
        assert said.endswith('--no-python xray_ct train /my cts --out /run --epochs 3\n'), said
        with contextlib.suppress(ProcessLookupError): os.killpg(job.pid, signal.SIGKILL)       # the stand-in's sleep
    assert re.search(r'^ARG BASE=\S+:\d[\w.-]+$', image, re.M) and re.search(r'^USER [1-9]\d*:', image, re.M)
    for line in re.findall(r'^COPY (?!--from)(.+) \S+$', image, re.M):
        for name in line.split(): assert (root/name).exists(), name
    pins = dict(re.findall(r'^([\w-]+)==(\S+)$', (deploy/'constraints.txt').read_text(), re.M))
    assert {'torch', 'fastai', 'monai'} <= set(pins)

def pod(job, data, port, node):
    "What kubelet and operator make of the training's container: its command with variables filled in, its environment."
    c = pods(job)[0]['containers'][0]
    command = [re.sub(r'\$\((\w+)\)', lambda m: data[m[1]], str(a)) for a in c['command'] + c['args']]
    operator = dict(NNODES='1:2', NPROC_PER_NODE='1', MAX_RESTARTS='10', RDZV_BACKEND='c10d', RDZV_ID='xray-ct-train',
                    RDZV_ENDPOINT=f'localhost:{port}', RDZV_CONF=f'is_host={int(node == 0)}')
    env = {**os.environ, **data, **{e['name']: e['value'] for e in c['env']}, 'PATH': f'{bin}:{os.environ["PATH"]}',
           'OMP_NUM_THREADS': '1', **{f'PET_{k}': v for k, v in operator.items()}}
    with open(Path(data['RUN']).with_suffix(f'.{node}.log'), 'a') as log:
        return subprocess.Popen(command, env=env, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)

def worker_of(p):
    "The training process that a pod's torchrun started."
    return int(Path(f'/proc/{p.pid}/task/{p.pid}/children').read_text().split()[0])

def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]

def epochs(run): return len((run/'log.csv').read_text().splitlines()) - 1 if (run/'log.csv').exists() else 0

def train():
    from xray_ct.data.phantom import write_cohort
    from xray_ct.files import read_json
    files = [deploy/f'kubernetes/base/{n}.yaml' for n in ('settings', 'train')]
    docs = [d for f in files for d in yaml.safe_load_all(f.read_text())]
    folder = Path(tempfile.mkdtemp(prefix='xray_ct_deploy_'))
    write_cohort(folder/'cts', n=12, size=32, spacing=10.)
    run = folder/'run'
    data = docs[0]['data'] | dict(
        CTS=str(folder/'cts'), CACHE=str(folder/'cache'), RUN=str(run), PRESET='tiny', SIZE='16', SPACING='20',
        EPOCHS='6', BATCH_SIZE='4', WORKERS='0')
    port = free_port()
    def wait(ready):
        until = time.time() + 240*slowness(again=True).wall
        while not ready():
            if time.time() > until or any(p.poll() for p in nodes):
                raise AssertionError('\n'.join(f.read_text()[-3000:] for f in folder.glob('*.log')))
            time.sleep(.05)
    nodes = [pod(docs[1], data, port, n) for n in (0, 1)]
    try:
        for node, done in ((1, 1), (0, 3)):   # torchrun brings all of them together again
            wait(lambda: epochs(run) >= done)
            os.kill(worker_of(nodes[node]), signal.SIGKILL)
        wait(lambda: all(p.poll() == 0 for p in nodes))
    finally:
        for p in nodes:
            if p.poll() is None: os.killpg(p.pid, signal.SIGKILL)
    said, info = run.with_suffix('.0.log').read_text(), read_json(run/'run.json')
    assert info['finished'] and info['epochs'] == 6 and info['provenance']['processes'] == 2, info
    again = re.findall('Resuming after epoch ([0-9]+)', said)
    assert len(again) == 2, said[-3000:]
    assert (run/'metrics.json').exists() and (run/'model.safetensors').exists()
    command = ' '.join(pods(docs[1])[0]['containers'][0]['command'])
    print(f'{command} …: two pods, a worker of each killed, resumed after epochs {" and ".join(again)}, finished')
    shutil.rmtree(folder)

if __name__ == '__main__':
    manifests()
    scripts()
    train()
