"""Local folders of transformers: sharded weights, and indexes that are damaged or leave the folder."""

import json

import pytest
import torch
from test_huggingface import theirs

from codec.config import ConfigError
from codec.evaluation.huggingface import HuggingFaceCodec
from codec.huggingface import convert, speech
from codec.system.local_model import INDEX_FILE, weight_files

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("default")


def sharded(model, folder):
    """Save a model whole and in shards; returns both folders."""
    model.save_pretrained(folder / "whole")
    model.save_pretrained(folder / "shards", max_shard_size="10KB")
    assert len(weight_files(folder / "shards")) > 2 and len(weight_files(folder / "whole")) == 1
    return folder / "whole", folder / "shards"


@pytest.fixture(scope="module")
def encodec(tmp_path_factory):
    return sharded(theirs("encodec"), tmp_path_factory.mktemp("encodec"))


@pytest.fixture
def index(encodec):
    """Index of a sharded codec, restored at the end."""
    file = encodec[1] / INDEX_FILE
    text = file.read_text()
    yield file
    file.write_text(text)


@torch.no_grad()
def test_shards_are_read_as_one_file(encodec, tmp_path):
    whole, shards = (convert.load(folder).state_dict() for folder in encodec)
    assert whole.keys() == shards.keys() and all(torch.equal(whole[name], shards[name]) for name in whole)
    peers = [HuggingFaceCodec(folder, "peer").identity() for folder in encodec]
    assert peers[0] == peers[1]
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    positions = {"num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2}
    model = transformers.WavLMModel(transformers.WavLMConfig(conv_dim=[8] * 7, **sizes, **positions))
    folders = sharded(model, tmp_path)
    for folder in folders:
        transformers.Wav2Vec2FeatureExtractor().save_pretrained(folder)
    audio = torch.randn(1, 1, 3200)
    features = [speech.SpeechModel(folder).encode(audio) for folder in folders]
    assert torch.equal(*features)


@pytest.mark.parametrize(
    ("shard", "message"),
    [
        (
            "../whole/model.safetensors",
            "'../whole/model.safetensors' is refused: shards are safetensors files",
        ),
        ("/etc/model.safetensors", "is refused"),
        ("model.bin", "'model.bin' is refused"),
        (1, "damaged"),
        ("model-9.safetensors", "model-9.safetensors is missing, a shard in model.safetensors.index.json"),
    ],
)
def test_shards_elsewhere_and_missing_ones_are_refused(index, shard, message):
    content = json.loads(index.read_text())
    content["weight_map"]["one.more"] = shard
    index.write_text(json.dumps(content))
    for read in (convert.load, lambda folder: HuggingFaceCodec(folder, "peer")):
        with pytest.raises((ConfigError, FileNotFoundError), match=message):
            read(index.parent)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"weight_map": [1]}', '{"weight_map": {"a": [1]}}'])
def test_damaged_indexes_are_refused(index, text):
    index.write_text(text)
    with pytest.raises(ConfigError, match=f"{INDEX_FILE}: damaged"):
        weight_files(index.parent)


def test_a_weight_in_two_shards_is_refused(encodec, index):
    first, second, *_ = weight_files(index.parent)
    original = second.read_bytes()
    second.write_bytes(first.read_bytes())
    with pytest.raises(ConfigError, match="is in another shard, too"):
        convert.load(index.parent)
    second.write_bytes(original)
