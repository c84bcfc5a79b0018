"""Tasks in a process of its own, which a test may let die. Importing the library takes ten seconds, so such a process is forked from
one that has imported it."""

import importlib
import multiprocessing
import os
import resource
import signal
import sys
import traceback
from pathlib import Path

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["toolrl_lit.train"])


def run(task, *args, log: Path, **environ: str) -> int:
    "Run a task of this module apart, with what it prints in `log`; return its exit code, which is -9 if it was killed."
    process = FORKS.Process(target=_begin, args=(task, args, log, environ))
    process.start()
    process.join(300)
    assert process.exitcode is not None, "still running after 300 seconds"
    return process.exitcode


def _begin(task, args, log: Path, environ: dict[str, str]):
    os.environ.update(environ)
    if "TRACKIO_DIR" in environ:  # trackio has read it when it was imported, before the fork
        for module in [m for name, m in sys.modules.items() if name.startswith("trackio")]:
            if hasattr(module, "TRACKIO_DIR"):
                module.TRACKIO_DIR = Path(environ["TRACKIO_DIR"])
    with Path(log).open("w") as said:
        os.dup2(said.fileno(), 1)
        os.dup2(said.fileno(), 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
    try:
        task(*args)
    except BaseException:
        traceback.print_exc()
        raise


def _read(config: dict, environments: Path):
    from toolrl_lit.schema import Environment, read_jsonl
    from toolrl_lit.train import make_config

    return make_config(**config), read_jsonl(environments, Environment)


def killed(stage: str, config: dict, environments: Path, where: str, count: int):
    "Begin a training, or a warm start, and kill this process at the given call of a function."
    from toolrl_lit import train

    module, name = where.rsplit(".", 1)
    calls, module = iter(range(1, 100)), importlib.import_module(module)
    plain = getattr(module, name)

    def dies(*args, **kwargs):
        if next(calls) == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return plain(*args, **kwargs)

    setattr(module, name, dies)
    getattr(train, stage)(*_read(config, environments))


def on_full_disk(config: dict, environments: Path, limit: int):
    "Train where no file can grow larger than `limit` bytes, as on a disk that is full, and print the error."
    from toolrl_lit.schema import UserError
    from toolrl_lit.train import train

    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, -1))
    try:
        train(*_read(config, environments))
    except UserError as e:
        print(e)


def command(*arguments: str):
    "Run `toolrl` with these arguments."
    from toolrl_lit.doors.cli import main

    sys.argv = ["toolrl", *arguments]
    main()


def processed(root: Path, pages: list[str], failed: Path):
    "Do to pages what `nbdev_proc_nbs` does, from the root of the repository, and write which of them fail and why."
    import json
    import warnings

    from execnb.nbio import read_nb
    from nbdev.processors import FilterDefaults

    os.chdir(root)
    warnings.simplefilter("ignore")
    why = {}
    for page in pages:
        try:
            FilterDefaults()(read_nb(page))
        except Exception as e:
            why[page] = f"{e} <- {e.__cause__!r}"
    Path(failed).write_text(json.dumps(why))
    os._exit(0)  # to end the shells of all pages one by one takes a minute


def doors():
    "Open a door through a chapter, and see that it, and what it needs, were shut before."
    from toolrl_lit import collect

    assert not [name for name in sys.modules if name.startswith("toolrl_lit.doors")]
    assert "openai" not in sys.modules
    assert collect.EndpointPolicy and "toolrl_lit.doors.endpoint" in sys.modules


def launch(how: list[str], task, *args):
    "Start a task as `accelerate launch` does, in processes that are forked from this one and not new: what they import takes longest."
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed import run as distributed

    plain = distributed.config_from_args

    def forking(given):
        config, *_ = plain(given)
        config.start_method = "fork"
        return config, task, args

    distributed.config_from_args = forking
    launch_command(launch_command_parser().parse_args([*how, __file__]))


def commands(told: list[list[str]]):
    "Run `toolrl train` several times."
    for arguments in told:
        try:
            command("train", *arguments)
        except SystemExit as e:
            if e.code:
                raise


def trainings(file: Path, told: list[dict]):
    "Train several times; where the folder says so, be interrupted in the second batch of rollouts, and go on."
    from functools import partial

    from toolrl_lit import train as module
    from toolrl_lit.engine import sampling, trainer

    trainer.token_scores = partial(trainer.token_scores, chunk=16)
    plain = sampling.generate_tokens

    def stopped(*args, **kwargs):
        if next(calls) == 2:
            raise KeyboardInterrupt
        return plain(*args, **kwargs)

    for values in told:
        config, environments = _read(values, file)
        if config.warm_steps:
            module.warm_start(config, environments)
            continue
        if config.out.endswith("interrupted"):
            sampling.generate_tokens, calls = stopped, iter(range(1, 100))
            try:
                module.train(config, environments)
            except KeyboardInterrupt:
                sampling.generate_tokens = plain
        module.train(config, environments)


def tracked(out: Path):
    "Write what trackio has kept, by project and run."
    import json

    from trackio.sqlite_storage import SQLiteStorage as s

    kept = {p: {r: s.get_logs(p, r) for r in s.get_runs(p)} for p in s.get_projects()}
    Path(out).write_text(json.dumps(kept))
