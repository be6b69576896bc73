from fabric.operator.nodes import NodeState, latest_by_address


def test_a_host_that_came_back_is_alive_whatever_its_old_node_says():
    old, new = NodeState("10.0.0.2", alive=False, gpus=2), NodeState("10.0.0.2", alive=True, gpus=2)
    head = NodeState("10.0.0.1", alive=True, gpus=0)
    assert latest_by_address([new, head, old]) == [head, new]
    assert latest_by_address([old, head, new]) == [head, new]


def test_a_host_whose_every_node_is_dead_is_dead():
    dead = NodeState("10.0.0.2", alive=False, gpus=2)
    assert latest_by_address([dead, dead]) == [dead]
