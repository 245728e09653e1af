"""Models of text. All take (batch, length) int64 and return logits (batch, characters of the alphabet, length)."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor, nn

from fedmpi.data.shapes import TextShape
from fedmpi.models.registry import ModelConfig, register


class CharGruConfig(ModelConfig):
    """Settings of the character GRU."""

    embedding: int = Field(256, ge=1, description="numbers a character is embedded in")
    hidden: int = Field(1024, ge=1, description="units of each GRU layer")
    layers: int = Field(1, ge=1, description="GRU layers")


class CharGru(nn.Module):
    """Embedding, GRU layers, and one fully connected layer at each place."""

    def __init__(self, config: CharGruConfig, num_classes: int) -> None:
        super().__init__()
        # The GRU comes first, so that its weights are the head of the flat state. cuDNN uses weights where they lie if
        # they begin their storage and follow each other as it wants them (one layer's do); else it copies them in each
        # step, and warns. flatten_parameters() is no cure: it would move them out of the flat vector.
        self.gru = nn.GRU(config.embedding, config.hidden, config.layers, batch_first=True)
        self.embedding = nn.Embedding(num_classes, config.embedding)
        self.fc = nn.Linear(config.hidden, num_classes)

    def forward(self, x_BT: Tensor) -> Tensor:
        """Return logits (batch, characters, length)."""
        hidden_BTH, _ = self.gru(self.embedding(x_BT))
        logits_BTK: Tensor = self.fc(hidden_BTH)
        return logits_BTK.transpose(1, 2)


@register("char_gru", CharGruConfig, takes=TextShape)
def char_gru(config: CharGruConfig, shape: TextShape, num_classes: int) -> nn.Module:
    """Character GRU: 4,048,470 parameters with an alphabet of 86 at the defaults."""
    return CharGru(config, num_classes)
