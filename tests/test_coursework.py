import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fmnist_tracking.config import TrainingConfig
from fmnist_tracking.data import DataSplit
from fmnist_tracking.network import feature_map_sizes
from fmnist_tracking.networks.build import build_model
from fmnist_tracking.networks.models import activations, convolution, load_model, predict
from fmnist_tracking.networks.portable import make_portable
from fmnist_tracking.search_space import SearchSpace
from models import with_weights


@pytest.mark.parametrize("config", SearchSpace().points(TrainingConfig.of()), ids=str)
def test_layers_have_the_sizes_that_were_checked(config: TrainingConfig) -> None:
    model = build_model(config)
    sizes = feature_map_sizes(config.values, config.network.image_shape)
    for layer, sides in sizes.items():
        assert model.get_layer(layer).output.shape[1:] == (*sides, config["filters"])
    assert model.output_shape == (None, 10)


def test_parameters_of_the_best_coursework_point() -> None:
    by_hand = (9 + 1) * 48 + (9 * 48 + 1) * 48 + (5 * 5 * 48 + 1) * 64 + (64 + 1) * 10
    assert build_model(TrainingConfig.of()).count_params() == by_hand


def test_raw_pixels_in_probabilities_out(split: DataSplit) -> None:
    model = build_model(TrainingConfig.of(filters=4))
    assert model.input_shape == (None, 28, 28, 1)
    assert model.inputs[0].dtype == "uint8"
    probabilities = predict(model, split.train_images[:7])
    assert probabilities.shape == (7, 10)
    assert probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)


def test_48_activation_maps_of_26_by_26(split: DataSplit) -> None:
    model = build_model(TrainingConfig.of(filters=48, kernel_size=3, strides=1))
    image = split.train_images[0]
    layer = convolution(model, None)
    assert layer is model.get_layer("conv1")
    maps = activations(model, layer, image)
    assert maps.shape == (48, 26, 26)
    # One value by hand: filter 5 at row 10, column 12, with the scaled pixels under it.
    kernel, bias = model.get_layer("conv1").get_weights()
    window = image[10:13, 12:15, 0] / 255
    by_hand = max(0.0, float((window * kernel[:, :, 0, 5]).sum() + bias[5]))
    assert maps[5, 10, 12] == pytest.approx(by_hand, abs=1e-5)
    assert maps.max() > 0


def test_saved_model_loads_safely_and_agrees(tmp_path: Path, split: DataSplit) -> None:
    model = build_model(TrainingConfig.of(filters=4))
    model.save(tmp_path / "m.keras")
    loaded = load_model(tmp_path / "m.keras")
    images = split.validation_images[:50]
    np.testing.assert_array_equal(predict(loaded, images), predict(model, images))


def configs(value: Any) -> Iterator[dict[str, Any]]:
    """The arguments of every layer and initializer in what Keras has serialized."""
    if isinstance(value, dict):
        if isinstance(value.get("config"), dict):
            yield value["config"]
        for item in value.values():
            yield from configs(item)
    elif isinstance(value, list):
        for item in value:
            yield from configs(item)


def test_a_portable_file_has_only_arguments_that_say_something(
    tmp_path: Path, split: DataSplit
) -> None:
    import keras

    inner = keras.layers.LSTM(3, activation=None, use_bias=False, kernel_initializer="he_normal")
    layers = [keras.Input((28, 28)), keras.layers.Bidirectional(inner), keras.layers.Dense(2)]
    images, small = split.validation_images[:5], TrainingConfig.of(filters=4)
    for model, inputs in (
        (with_weights(small, build_model(small).get_weights()), images),
        (keras.Sequential(layers), images[..., 0] / 255),
    ):
        path = tmp_path / "m.keras"
        model.save(path)
        make_portable(path)
        with zipfile.ZipFile(path) as file:
            found = list(configs(json.loads(file.read("config.json"))))
        assert len(found) > 5
        for config in found:
            assert not {"input_axes", "output_axes", "quantization_config", "seed"} & set(config)
        loaded = keras.models.load_model(path)
        np.testing.assert_array_equal(loaded.predict(inputs), model.predict(inputs))
    lstm = next(config for config in found if "recurrent_activation" in config)
    assert (lstm["use_bias"], lstm["activation"]) == (False, "linear")
    assert [p.name for p in tmp_path.iterdir()] == ["m.keras"]


def test_a_model_of_another_shape_is_refused(tmp_path: Path) -> None:
    import keras

    keras.Sequential(
        [keras.Input((32, 32, 3)), keras.layers.Flatten(), keras.layers.Dense(10)]
    ).save(tmp_path / "other.keras")
    with pytest.raises(ValueError, match=r"It takes \(None, 32, 32, 3\) and gives \(None, 10\)"):
        load_model(tmp_path / "other.keras")


def test_code_in_a_model_file_is_not_run(tmp_path: Path) -> None:
    import keras

    sneaky = keras.Sequential([keras.Input((1,)), keras.layers.Lambda(lambda x: x + 1)])
    sneaky.save(tmp_path / "sneaky.keras")
    with pytest.raises(ValueError, match="unsafe"):
        load_model(tmp_path / "sneaky.keras")
