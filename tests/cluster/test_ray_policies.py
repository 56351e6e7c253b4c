"""What is tried again on Ray, and with how many workers."""

from typing import Any

import pytest
from makers.project import Project
from makers.ray_marks import MARKS

from pipeline.ground.errors import UserError
from pipeline.settings.profiles import Ray

pytestmark = [*MARKS, pytest.mark.usefixtures("ray_environment", "bounded")]


def failed(failures: dict[int, Exception]) -> Any:
    from ray.train.v2.api.exceptions import WorkerGroupError

    return WorkerGroupError("the traceback", failures)


def test_losses_alone_are_tried_again() -> None:
    from ray.exceptions import ActorDiedError
    from ray.train.v2._internal.execution.failure_handling import FailureDecision
    from ray.train.v2.api.config import FailureConfig

    from cluster.ray_policies import Losses, told

    torn, bug = RuntimeError("[gloo/transport/tcp/pair.cc] Connection closed by peer"), KeyError("x")
    lost = failed({1: ActorDiedError(), 0: torn})
    policy = Losses(FailureConfig(max_failures=1))
    assert policy.make_decision(failed({1: ActorDiedError(), 0: bug})) is FailureDecision.RAISE
    assert [policy.make_decision(lost) for _ in range(2)] == [FailureDecision.RETRY, FailureDecision.RAISE]
    assert told(lost, Ray(failures=1)).startswith(
        "rank 1 was lost (out of memory? a node that went away?) and 1 replacement(s) were lost too;"
    )
    assert told(failed({0: torn, 1: bug}), Ray()) == "rank 1 ended with KeyError; its traceback is above"
    assert told(failed({0: bug, 1: UserError("mend it")}), Ray()) == "mend it"


def test_numbers_of_workers_divide_the_batch(away: Project) -> None:
    from ray.train.v2.api.config import ScalingConfig

    from cluster.ray_policies import Divisors
    from cluster.ray_train import world_sizes

    away.profile["ray"] = {"elastic": [1, 4]}
    config = away.config("fcn")
    assert config.launch.ray is not None
    sizes = world_sizes(config, config.launch.ray)
    assert sizes == [1, 2, 4]
    policy = Divisors(ScalingConfig(num_workers=(1, 4)))
    policy.sizes = sizes
    assert [policy._count_possible_workers({"node": {"CPU": room}}) for room in (0, 1, 2, 3, 4, 9)] == [0, 1, 2, 2, 4, 4]
