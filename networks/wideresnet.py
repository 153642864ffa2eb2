"""WideResNet: Zagoruyko and Komodakis, "Wide Residual Networks", BMVC 2016. The paper's main network is WRN-28-4."""

from torch import nn

from networks.layers import Classifier, cifar_stem, convolution

_STEM_CHANNELS = 16


def build(num_classes, depth, width):
    """WRN-depth-width without dropout."""
    return WideResNet(num_classes, depth, width)


class PreActivationBlock(nn.Module):
    """Two 3x3 convolutions, each after batch normalisation and ReLU (B(3,3) of the paper; He et al. 2016b).

    (N, channels_in, H, W) -> (N, channels_out, H / stride, W / stride). Nothing follows the addition: between blocks of
    one shape the identity path is never touched. Where the shape changes, a 1x1 convolution of the activated input
    takes its place. Dropout, if any, sits between the convolutions (the paper's section 2.4).
    """

    def __init__(self, channels_in, channels_out, stride=1, dropout=0.0):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels_in)
        self.conv1 = convolution(channels_in, channels_out, 3, stride)
        self.bn2 = nn.BatchNorm2d(channels_out)
        self.relu = nn.ReLU(inplace=True)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = convolution(channels_out, channels_out, 3)
        same_shape = stride == 1 and channels_in == channels_out
        self.shortcut = None if same_shape else convolution(channels_in, channels_out, 1, stride)

    def forward(self, x):
        activated = self.relu(self.bn1(x))
        identity = x if self.shortcut is None else self.shortcut(activated)
        out = self.relu(self.bn2(self.conv1(activated)))
        return self.conv2(self.dropout(out)) + identity


class WideResNet(nn.Module):
    """WRN-depth-width: three stages of (depth - 4) / 6 blocks with 16, 32 and 64 times `width` channels.

    (N, 3, S, S) normalised images -> (N, num_classes) float32 logits. `dropout` is the share of values dropped inside
    each block (the paper: 0.3 on CIFAR where it is used at all). Raises ValueError unless depth is 6n+4 and width >= 1.
    """

    def __init__(self, num_classes, depth=28, width=4, dropout=0.0):
        super().__init__()
        if depth < 10 or depth % 6 != 4 or width < 1:
            raise ValueError(f"depth {depth} must be 6n+4, width {width} at least 1")
        self.stem = cifar_stem(_STEM_CHANNELS)
        channels = [_STEM_CHANNELS] + [_STEM_CHANNELS * width * factor for factor in (1, 2, 4)]
        self.stages = nn.Sequential(
            *[
                _stage(channels[stage], channels[stage + 1], (depth - 4) // 6, 1 if stage == 0 else 2, dropout)
                for stage in range(3)
            ]
        )
        self.bn = nn.BatchNorm2d(channels[-1])
        self.relu = nn.ReLU(inplace=True)
        self.classifier = Classifier(channels[-1], num_classes)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, x):
        x = self.relu(self.bn(self.stages(self.stem(x))))
        return self.classifier(x.mean((2, 3)))


def _stage(channels_in, channels_out, blocks, stride, dropout):
    first = PreActivationBlock(channels_in, channels_out, stride, dropout)
    rest = [PreActivationBlock(channels_out, channels_out, 1, dropout) for _ in range(blocks - 1)]
    return nn.Sequential(first, *rest)
