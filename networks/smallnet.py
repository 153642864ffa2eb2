"""A small fast net for CPUs (about 0.4 M parameters), for demonstrations and sweeps on a few thousand 32-px images."""

from torch import nn

from networks.layers import Classifier, convolution


def build(num_classes):
    return SmallNet(num_classes)


class SmallNet(nn.Module):
    def __init__(self, num_classes, channels=(32, 64, 128, 256)):
        super().__init__()
        first, *rest = channels
        layers = [nn.Conv2d(3, first, 4, 2, 1, bias=False), nn.BatchNorm2d(first), nn.ReLU(inplace=True)]
        for before, after in zip(channels, rest, strict=False):
            layers += [convolution(before, after, 3), nn.MaxPool2d(2), nn.BatchNorm2d(after), nn.ReLU(inplace=True)]
        self.features = nn.Sequential(*layers)
        self.classifier = Classifier(channels[-1], num_classes)

    def forward(self, x):
        return self.classifier(self.features(x).mean((2, 3)))
