"""A node with real children: what a customer sees of it."""


async def test_a_function_runs_and_its_value_comes_back(site):
    customer = await site.leased()
    customer.call(customer.function(lambda x: x + 1), 41)
    assert await customer.outcomes(1) == {0: 42}


async def test_an_exception_of_the_function_comes_back_with_its_remote_traceback_and_without_our_frames(site):
    def fails():
        raise KeyError("gone")

    customer = await site.leased()
    customer.call(customer.function(fails))
    error = (await customer.outcomes(1))[0]
    assert isinstance(error, KeyError)
    note = error.__notes__[0]
    assert "in fails" in note
    assert "fabric/agent/child.py" not in note
