"""How much memory weightfs takes while all of the model is read, sampled every 20 ms: anonymous resident bytes, and the peak of all."""
from .. import processes, readers


def reading(tag, work):
    def measure(bench):
        with bench.mounted(bench.redirect, tag) as mount:
            pids = mount.session.pids()
            with processes.Sampler(lambda: processes.anonymous(pids)) as sampler:
                done = mount.read(lambda paths: readers.timed(lambda: work(paths)))
            return {"anonymous": sampler.most, "peak": processes.peak(pids), "mb_s": done["found"] / 1e6 / done["s"]}
    return measure
