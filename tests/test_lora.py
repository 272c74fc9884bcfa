"""Adapters: what they adapt, that they start silent, that they are W + alpha / rank * B A, how they train."""

import copy
import dataclasses

import pytest
import torch
from adapters import CONFIG, KINDS, X, adapted, answer, joined, network, teach
from reference import difference

from training.lora import PARTS, add_lora, lora_of, store_frozen
from univid.checkpoints.lora import merge

# Which layers. Both networks: one block a level, transformers at three of four levels, widths 16, 32, 32, 32.

TRANSFORMERS = [f"input_blocks.{i}.1." for i in (1, 3, 5)] + ["middle_block.1."]
TRANSFORMERS += [f"output_blocks.{i}.1." for i in (2, 3, 4, 5, 6, 7)]
RES_BLOCKS = [f"input_blocks.{i}.0." for i in (1, 3, 5, 7)] + ["middle_block.0.", "middle_block.2."]
RES_BLOCKS += [f"output_blocks.{i}.0." for i in range(8)]
WIDENING = ["input_blocks.3.0."] + [f"output_blocks.{i}.0." for i in range(8)]  # the only ones with a skip
RESIZING = [f"input_blocks.{i}.0.op" for i in (2, 4, 6)]
RESIZING += ["output_blocks.1.1.conv", "output_blocks.3.2.conv", "output_blocks.5.2.conv"]
QKVO = ("to_q", "to_k", "to_v", "to_out.0")
FEED_FORWARD = ("ff.net.0.proj", "ff.net.2")


BLOCK = "transformer_blocks.0."
EXPECTED = {
    "univid": {
        "cross": joined(TRANSFORMERS, BLOCK, "attn2.", (*QKVO, "to_k_image", "to_v_image")),
        "spatial": joined(TRANSFORMERS, BLOCK, ("attn1.", "pst_attn."), QKVO),
        "temporal": joined(TRANSFORMERS, "temporal.attn1.", QKVO),
        "rest": joined(RES_BLOCKS, ("in_temporal.conv", "out_temporal.conv"))
        | joined(TRANSFORMERS, "temporal.", ("proj_in", "proj_out", *FEED_FORWARD)),
    },
    "family": {
        "cross": joined(TRANSFORMERS, BLOCK, "attn2.", QKVO),
        "spatial": joined(TRANSFORMERS, BLOCK, "attn1.", QKVO),
        "temporal": joined(
            [*joined(TRANSFORMERS, "temporal."), "input_blocks.0.1."], BLOCK, ("attn1.", "attn2."), QKVO
        ),
        "rest": joined(RES_BLOCKS, "temporal_stack.", tuple("0123"), ".conv")
        | joined(
            [*joined(TRANSFORMERS, "temporal."), "input_blocks.0.1."],
            ("proj_in", "proj_out", *joined(BLOCK, FEED_FORWARD)),
        ),
    },
}
TRUNK = (
    joined(RES_BLOCKS, ("in_layers.2", "emb_layers.1", "out_layers.3"))
    | joined(WIDENING, "skip_connection")
    | joined(TRANSFORMERS, ("proj_in", "proj_out", *joined(BLOCK, FEED_FORWARD)))
    | set(RESIZING)
)
CHOSEN = {
    "all": ("cross", "spatial", "temporal", "rest"),
    "attention": ("cross", "spatial", "temporal"),
    "cross-attention": ("cross",),
    "temporal-attention": ("temporal",),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("parts", CHOSEN)
def test_each_choice_adapts_exactly_its_layers(kind, parts):
    assert set(PARTS) == set(CHOSEN)
    expected = set().union(*(EXPECTED[kind][name] for name in CHOSEN[parts]))
    if parts == "all":
        expected |= TRUNK
    unet = network(kind)
    paths = add_lora(unet, dataclasses.replace(CONFIG, parts=parts), seed=5)
    assert len(paths) == len(set(paths)) and set(paths) == expected
    trained = {name for name, parameter in unet.named_parameters() if parameter.requires_grad}
    assert trained == joined(sorted(expected), (".lora_A.weight", ".lora_B.weight"))


# What they compute


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("parts", ["all", "temporal-attention"])
def test_the_network_starts_as_it_was_bit_for_bit(kind, parts):
    """Frozen before too: torch multiplies matrices in another order where one of them wants a gradient."""
    unet = network(kind).requires_grad_(False)
    smallest = X[..., :8, :]  # a single position in the middle, where any memory layout fits

    def answers():
        whole = [answer(unet, kind, x) for x in (X, smallest)]
        with torch.autocast("cpu", torch.bfloat16):
            return [*whole, answer(unet, kind)]

    with torch.no_grad():
        before = answers()
        add_lora(unet, dataclasses.replace(CONFIG, parts=parts), seed=5)
        assert all(torch.equal(a, b) for a, b in zip(answers(), before, strict=True))
        teach(unet)
        assert all(difference(a, b) > 1e-2 for a, b in zip(answers(), before, strict=True))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("parts", ["all", "temporal-attention"])
def test_adapters_are_the_merged_weights(kind, parts):
    unet = adapted(kind, dataclasses.replace(CONFIG, parts=parts))
    lora = lora_of(unet)

    def merged(strength):
        plain = network(kind)
        merge(plain, lora, strength)
        return answer(plain, kind)

    with torch.no_grad():
        ours = answer(unet, kind)
        assert difference(ours, merged(1.0)) < 1e-5
        assert difference(ours, merged(0.5)) > 1e-2
        assert torch.equal(merged(0.0), answer(network(kind), kind))


@pytest.mark.parametrize("kind", KINDS)
def test_merged_weights_are_the_papers_formula(kind):
    """W + s alpha / r B A, of a convolution as the one-by-one convolution B after the convolution A."""
    lora, plain, unet = lora_of(adapted(kind)), network(kind), network(kind)
    merge(unet, lora, -0.7)
    before, after = plain.state_dict(), unet.state_dict()
    for path, layer in lora.layers.items():
        down, up = layer.down.double(), layer.up.double()
        if down.dim() == 4:
            product = torch.einsum("or,rikl->oikl", up[:, :, 0, 0], down)
        else:
            product = torch.einsum("or,ri->oi", up, down)
        expected = before[f"{path}.weight"].double() - 0.7 * 2.0 / 3 * product
        assert (after.pop(f"{path}.weight") - expected).abs().max() < 1e-6, path
        assert product.abs().max() > 0.01
    assert all(torch.equal(weight, before[name]) for name, weight in after.items())


def test_kernels_of_every_kind_are_adapted():
    """3x3, 1x1, with stride, and along time: what `all` promises, seen in the file's shapes."""
    shapes = {path: tuple(layer.down.shape) for path, layer in lora_of(adapted("univid")).layers.items()}
    assert shapes["input_blocks.1.0.in_layers.2"] == (3, 16, 3, 3)
    assert shapes["input_blocks.3.0.skip_connection"] == (3, 16, 1, 1)
    assert shapes["input_blocks.2.0.op"] == (3, 16, 3, 3)
    assert shapes["middle_block.0.in_temporal.conv"] == (3, 32, 9, 1)
    assert shapes["input_blocks.1.0.emb_layers.1"] == (3, 64)


def test_where_they_start_depends_on_seed_and_path_alone():
    def starts(seed, parts="all", global_seed=0):
        torch.manual_seed(global_seed)
        unet = network("univid")
        add_lora(unet, dataclasses.replace(CONFIG, parts=parts), seed)
        return {path: layer.down for path, layer in lora_of(unet).layers.items()}

    first, again, other = starts(5), starts(5, global_seed=1), starts(6)
    fewer = starts(5, "cross-attention")
    for path, down in first.items():
        assert torch.equal(down, again[path]) and not torch.equal(down, other[path])
        assert torch.equal(down, fewer.get(path, down))
        bound = down[0].numel() ** -0.5  # Kaiming's with a = sqrt(5)
        assert 0.7 * bound < down.abs().max() <= bound
    assert len({down.sum().item() for down in first.values()}) == len(first)


# Training


def train_step(unet, kind):
    unet.train()
    trained = [parameter for parameter in unet.parameters() if parameter.requires_grad]
    (answer(unet, kind) ** 2).mean().backward()
    grads = {name: p.grad.clone() for name, p in unet.named_parameters() if p.grad is not None}
    torch.optim.AdamW(trained, lr=1e-2).step()
    unet.zero_grad()
    return grads


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("parts", ["all", "temporal-attention"])
def test_only_adapters_get_gradients_and_move(kind, parts):
    unet = network(kind)
    paths = add_lora(unet, dataclasses.replace(CONFIG, parts=parts), seed=5)
    before = {name: tensor.clone() for name, tensor in unet.state_dict().items()}
    grads = train_step(unet, kind)
    assert grads.keys() == joined(paths, (".lora_A.weight", ".lora_B.weight"))
    assert all(grads[f"{path}.lora_B.weight"].any() for path in paths)
    grads = train_step(unet, kind)
    assert all(grads[f"{path}.lora_A.weight"].any() for path in paths)
    changed = {name for name, tensor in unet.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == grads.keys()


def test_a_single_frame_leaves_temporal_adapters_without_gradient():
    unet = adapted("univid")
    (answer(unet, "univid", X[:, :, :1]) ** 2).mean().backward()
    moved = {name for name, p in unet.named_parameters() if p.grad is not None}
    temporal = ("temporal.", "pst_attn.")
    assert moved and not any(part in name for name in moved for part in temporal)


@pytest.mark.parametrize("kind", KINDS)
def test_frozen_weights_in_bfloat16_change_nothing_under_autocast(kind):
    """What autocast rounds at every use may be kept rounded; what is trained stays float32."""
    unet, halved = adapted(kind), adapted(kind)
    store_frozen(halved, torch.bfloat16)
    dtypes = {name: parameter.dtype for name, parameter in halved.named_parameters()}
    for name, dtype in dtypes.items():
        kept = ("lora_", "norm", "|out.0.", ".in_layers.0.", ".out_layers.0.")  # the last are GroupNorms
        assert (dtype == torch.float32) == any(part in f"|{name}" for part in kept), name
    grads = []
    for network_ in (unet, halved):
        with torch.autocast("cpu", torch.bfloat16):
            out = answer(network_, kind)
        out.float().square().mean().backward()
        grads.append({name: p.grad for name, p in network_.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys() and len(grads[0]) == 2 * len(lora_of(unet).layers)
    for name, grad in grads[0].items():
        assert grad.dtype == torch.float32 and torch.equal(grad, grads[1][name]), name


def test_adapters_of_a_network_in_half_precision_are_float32():
    unet = network("univid").half()
    add_lora(unet, CONFIG, seed=5)
    assert {p.dtype for p in unet.parameters() if p.requires_grad} == {torch.float32}
    assert {p.dtype for p in unet.parameters() if not p.requires_grad} == {torch.float16}


@pytest.mark.parametrize("kind", KINDS)
def test_activation_checkpointing_gives_the_same_gradients(kind):
    plain, saving = adapted(kind), adapted(kind)
    saving.checkpointing = True
    expected, grads = train_step(plain, kind), train_step(saving, kind)
    assert grads.keys() == expected.keys()
    assert all(torch.equal(grads[name], grad) for name, grad in expected.items())


def test_a_copy_learns_by_itself():
    """The moving average of the weights is a deep copy."""
    unet = adapted("univid")
    average = copy.deepcopy(unet)
    with torch.no_grad():
        expected = answer(unet, "univid")
        teach(unet, size=1.0)
        assert torch.equal(answer(average, "univid"), expected)
        assert difference(answer(unet, "univid"), expected) > 1e-2


def test_sharded_with_fsdp2_is_the_same():
    from torch import distributed as dist
    from torch.distributed.fsdp import fully_shard

    plain, sharded = adapted("univid"), adapted("univid")
    expected_lora, expected = lora_of(plain), train_step(plain, "univid")
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        mesh = dist.init_device_mesh("cpu", (1,))
        for layer in sharded.blocks():
            fully_shard(layer, mesh=mesh)
        fully_shard(sharded, mesh=mesh)
        lora = lora_of(sharded)
        assert lora.layers.keys() == expected_lora.layers.keys()
        for path, layer in lora.layers.items():
            assert type(layer.up) is torch.Tensor and torch.equal(layer.up, expected_lora.layers[path].up)
            assert torch.equal(layer.down, expected_lora.layers[path].down)
        grads = train_step(sharded, "univid")
        assert grads.keys() == expected.keys()
        for name, grad in expected.items():
            assert (grads[name].full_tensor() - grad).abs().max() <= 1e-5 * grad.abs().max(), name
    finally:
        dist.destroy_process_group()
