"""Drives one method over one problem: clock, evaluations, record. The only holder of a meter."""

import math
import traceback
from contextlib import contextmanager

import torch

from bench import progress, saes
from bench.batches import Batches, noise
from bench.evaluate import by_site, mean, measure
from bench.meter import Meter
from bench.record import Writer


def doubling(steps):
    """The steps to evaluate at: 0, 1, 2, 4, ... and the last."""
    powers = [2**i for i in range(steps.bit_length()) if 2**i < steps]
    return [0, *powers, steps] if steps else [0]


class Diverged(Exception):
    """The loss is no longer finite."""


def drive(method, problem, batches, config, meter, stops, resume=None, bar=None):
    """Yield (step, adapted) at each of `stops`, which are in ascending order.

    The clock runs inside `next()` of the method and nowhere else. `resume` is a `snapshot` to
    set at the first yield: state, random numbers, data cursor, in this order. A method that
    ends early (`none`) ends the run.
    """
    problem.last_loss = None
    generator = method.train(problem, batches, config)
    step, adapted, shown = -1, None, -1
    for stop in stops:
        while step < stop:
            with meter.running():
                following = next(generator, None)
            if following is None:
                break
            step, adapted = step + 1, following
            if resume and step == 0:
                step = restore(resume, adapted, batches)
            check_finite(problem.last_loss, step)
            if bar is not None:
                show(bar, step, problem.last_loss)
        if step > shown:
            yield step, adapted
            shown = step


def check_finite(loss, step):
    """Raise `Diverged` where the step's loss is NaN or infinite."""
    if loss is not None and not torch.isfinite(loss):
        raise Diverged(f"loss {float(loss)} at step {step}")


def show(bar, step, loss):
    """Move the progress bar."""
    if loss is not None and not bar.disable:
        bar.set_postfix_str(f"loss {float(loss):.4f}", refresh=False)
    bar.update(step - bar.n)


def snapshot(step, adapted, batches):
    """All that the next step depends on."""
    states = {name: _copied(part.state_dict()) for name, part in adapted.state.items()}
    random = torch.get_rng_state()
    return {"step": step, "state": states, "random": random, "cursor": batches.cursor}


def restore(taken, adapted, batches):
    """Set a `snapshot`; returns its step."""
    for name, part in adapted.state.items():
        part.load_state_dict(_copied(taken["state"][name]))
    torch.set_rng_state(taken["random"])
    batches.cursor = taken["cursor"]
    return taken["step"]


def _copied(value):
    if isinstance(value, torch.Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    return [_copied(item) for item in value] if isinstance(value, list) else value


@contextmanager
def evaluating(adapted):
    """Modules of the state in eval mode, and the random numbers as they were afterwards."""
    modules = [part for part in adapted.state.values() if isinstance(part, torch.nn.Module)]
    modes = [module.training for module in modules]
    try:
        with torch.random.fork_rng(enabled=True):
            for module in modules:
                module.eval()
            yield
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.train(mode)


def warm_up(method, problem, config):
    """Two steps on noise, before the seed is set, metered nowhere."""
    vocabulary, seq_len = len(problem.head.weight), problem.train.shape[1]
    batches = noise(vocabulary, problem.batch_size, seq_len, 2, problem.train.device)
    for _ in method.train(problem, batches, config):
        pass


class Harness:
    """Runs methods on one problem and writes a record for each run."""

    def __init__(self, problem, curve, validation, spliced, clock, sae_cost):
        self.problem, self.curve, self.validation = problem, curve, validation
        self.spliced = spliced
        """The `Score` of the bare spliced model on the validation windows."""
        self.clock = clock
        """What seconds depend on: machine, device, threads."""
        self.sae_cost = sae_cost
        """What the SAEs have cost so far: {} for fresh ones, None where it is not known."""
        self._lent = _copied(problem.saes.state_dict())
        self._warm = set()

    def run(self, method, config, header, steps, path):
        """One run -> its record at `path`; what it trained goes to the folder beside it.

        A method that raises or diverges ends its own record with that status and returns it;
        an interrupt ends the record and is raised again.
        """
        writer = Writer(path)
        writer.write(header)
        status = {"end": "interrupted"}
        try:
            status = self._run(method, config, header["seed"], steps, path, writer)
        except Diverged as error:
            status = {"end": "diverged", "reason": str(error)}
        except Exception as error:
            status = {"end": "error", "reason": f"{type(error).__name__}: {error}"}
            folder = path.with_suffix("")
            folder.mkdir(exist_ok=True)
            (folder / "traceback.txt").write_text(traceback.format_exc(), encoding="utf-8")
        finally:
            if self._take_back():
                status = {"end": "error", "reason": "the method changed the SAEs that it was lent"}
            writer.write(status)
            writer.close()
        return status["end"]

    def _take_back(self):
        """Put the lent SAEs right again; whether that was needed."""
        now = self.problem.saes.state_dict()
        changed = any(not torch.equal(now[name], self._lent[name]) for name in now)
        if changed:
            self.problem.saes.load_state_dict(self._lent)
        self.problem.saes.requires_grad_(False)
        return changed

    def _run(self, method, config, seed, steps, path, writer):
        problem, meter = self.problem, Meter(self.problem.bridge)
        if (method.__name__, repr(config)) not in self._warm:
            warm_up(method, problem, config)
            self._warm.add((method.__name__, repr(config)))
        if problem.clean_cache:
            self._filled_before = problem.clean_cache.filled
        torch.manual_seed(seed)
        batches = Batches(problem.train, problem.batch_size, steps, seed, meter.fetched)
        evaluations = doubling(steps)
        keeps = checkpoints(getattr(method, "CHECKPOINTS", 1), steps)
        stops = sorted({*evaluations, *keeps})
        with meter.watching(), progress.bar(total=steps, desc=path.stem, unit="step") as bar:
            for step, adapted in drive(method, problem, batches, config, meter, stops, bar=bar):
                if step in evaluations or step not in stops:  # the last of a method that ends early
                    row = self._row(step, adapted, meter)
                    writer.write(row)
                    if not math.isfinite(row["ce"]):
                        raise Diverged(f"CE {row['ce']} at step {step}")
                if step in keeps:
                    self._keep(path, step / steps, adapted, meter)
        save_state(adapted, path.with_suffix(""))
        return {"end": "finished", **self._final(adapted)}

    def _row(self, step, adapted, meter):
        with evaluating(adapted), meter.evaluation():
            score = measure(self.problem, self.curve, adapted)
        row = {
            "step": step,
            "ce": mean(score.ce),
            "kl": score.kl,
            "l0": mean(score.l0),
            "fvu": mean(score.fvu),
            **by_site(score),
            **meter.reading(),
        }
        if self.problem.clean_cache:
            row["cache_filled_tokens"] = self.problem.clean_cache.filled - self._filled_before
        return row

    def _final(self, adapted):
        score = self.spliced
        if adapted.hooks or adapted.blocks or adapted.saes is not self.problem.saes:
            with evaluating(adapted):
                score = measure(self.problem, self.validation, adapted)
        return {
            "ce_full": score.ce,
            "l0_full": mean(score.l0),
            "fvu_full": mean(score.fvu),
            **by_site(score, "_full"),
            "trained_parameters": sum(p.numel() for p in trained(adapted)),
        }

    def _keep(self, path, share, adapted, meter):
        """Save the SAEs, where the run trains them, with what they had cost by now."""
        if adapted.saes is self.problem.saes:
            return
        for index, sae in enumerate(adapted.saes):
            name = saes.checkpoint_name(share, index, len(adapted.saes))
            cost = self.sae_cost
            if cost is not None:
                spent = {k: v + cost.get(k, 0) for k, v in meter.reading().items()}
                cost = {**spent, **self.clock}
            folder = path.with_suffix("") / name
            saes.save(sae, folder, share=round(share, 4), run=path.stem, cost=cost)


def save_state(adapted, folder):
    """Write the modules that a run trained to `folder`/state.safetensors, names as in `state`."""
    from safetensors.torch import save_file

    modules = {k: v for k, v in adapted.state.items() if isinstance(v, torch.nn.Module)}
    states = {f"{k}.{n}": t for k, m in modules.items() for n, t in m.state_dict().items()}
    tensors = {name: tensor.contiguous() for name, tensor in states.items()}
    if tensors:
        folder.mkdir(exist_ok=True)
        save_file(tensors, folder / "state.safetensors")


def checkpoints(number, steps):
    """The steps at `number` even shares of a run."""
    return sorted({max(1, round(steps * i / number)) for i in range(1, number + 1)})


def trained(adapted):
    """The parameters that a run trains."""
    modules = [part for part in adapted.state.values() if isinstance(part, torch.nn.Module)]
    return [parameter for module in modules for parameter in module.parameters()]
