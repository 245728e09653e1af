"""A network for tests of split learning: three units, of which the first two may be the device's."""

from torch import nn


def Net(num_classes, shape, norm="batch", dropout=0.0):
    """Convolution with pooling, convolution, fully connected layers."""

    def normalize(channels):
        return nn.BatchNorm2d(channels, track_running_stats=norm == "batch")

    return nn.Sequential(
        nn.Sequential(nn.Conv2d(shape.channels, 4, 3, padding=1), normalize(4), nn.MaxPool2d(2), nn.ReLU()),
        nn.Sequential(nn.Conv2d(4, 6, 3, padding=1), normalize(6), nn.ReLU()),
        nn.Sequential(nn.Flatten(), nn.Linear(6 * (shape.height // 2) * (shape.width // 2), 16), nn.ReLU()),
        nn.Sequential(nn.Dropout(dropout), nn.Linear(16, num_classes)),
    )
