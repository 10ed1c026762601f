"""New words: a few rows beside the text encoder's own table, which are all that textual inversion trains."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_insert.diffusion.noise import step_generator
from lit_insert.errors import InputError


class TokenRows(nn.Module):
    """A token embedding of which the last rows are a parameter of their own; the table is frozen.

    So an optimiser, its weight decay included, cannot touch any other row, and no gradient of the table's size is
    made.

    Args:
        table: The text encoder's embedding.
        first: Id of the first new token; ids from there on, consecutive, are the new rows'.
        capacity: Number of new rows.

    Attributes:
        rows: (capacity, width), float32.
        used: int64 scalar: how many of them stand for something.
    """

    used: Tensor

    def __init__(self, table: nn.Embedding, first: int, capacity: int) -> None:
        super().__init__()
        self.table = table.requires_grad_(False)
        self.first, self.embedding_dim = first, table.embedding_dim
        self.rows = nn.Parameter(torch.zeros(capacity, table.embedding_dim))
        self.register_buffer("used", torch.zeros((), dtype=torch.int64))

    @property
    def num_embeddings(self) -> int:
        """Rows in all."""
        return max(self.table.num_embeddings, self.first + len(self.rows))

    def forward(self, input_ids: Tensor) -> Tensor:
        """Embeddings (..., width) of ids."""
        number = input_ids - self.first
        new = (number >= 0) & (number < len(self.rows))
        known = self.table(input_ids.masked_fill(new, 0))
        learned = F.embedding(number.clamp(0, len(self.rows) - 1), self.rows).to(known.dtype)
        return torch.where(new[..., None], learned, known)


def attach_rows(tokenizer: Any, text_encoder: Any, tokens: Sequence[str]) -> TokenRows:
    """Teach a tokenizer new tokens and put `TokenRows` for them into a text encoder, both in place.

    Raises:
        InputError: If the tokenizer has one of the tokens already, or splits it.
    """
    known = [token for token in tokens if token in tokenizer.get_vocab()]
    if known:
        raise InputError(f"token {known[0]}: the tokenizer of the base has it already; choose another placeholder")
    tokenizer.add_tokens(list(tokens))
    ids = tokenizer.convert_tokens_to_ids(list(tokens))
    if ids != list(range(ids[0], ids[0] + len(ids))):
        raise InputError(f"tokens {', '.join(tokens)} did not get consecutive ids; give plain placeholders")
    rows = TokenRows(text_encoder.get_input_embeddings(), ids[0], len(ids))
    text_encoder.set_input_embeddings(rows)
    return rows


@torch.no_grad()
def start_rows(
    rows: TokenRows,
    tokenizer: Any,
    count: int,
    words: Sequence[str] | None = None,
    *,
    seed: int = 0,
    spread: float = 1.0,
) -> None:
    """Give the first rows their starting values, in place.

    A row starts at the mean of its words' embeddings, or else of the whole table, plus ``spread`` times noise with the
    deviation that the table has in each dimension: two instances with the same words must not start as one.

    Args:
        rows: The rows.
        tokenizer: Splits the words.
        count: How many rows are in use.
        words: A phrase for each instance; by default none.
        seed: Seed of the noise.
        spread: Size of the noise.

    Raises:
        InputError: If the number of phrases is not ``count``, one is empty, or there are too few rows.
    """
    if count > len(rows.rows):
        raise InputError(f"there are {count} instances, but max_instances is {len(rows.rows)}; raise it")
    if words is not None and len(words) != count:
        raise InputError(f"initializer_words has {len(words)} entries, the folder {count} instances; give one each")
    table = rows.table.weight.float()
    deviation = table.std(0).cpu()
    for i in range(count):
        centre = table.mean(0)
        if words is not None:
            ids = tokenizer(words[i], add_special_tokens=False).input_ids
            if not ids:
                raise InputError(f"initializer_words: entry {i} is empty")
            centre = table[ids].mean(0)
        noise = torch.randn(deviation.shape, generator=step_generator(seed, 0, i)) * deviation * spread
        rows.rows[i] = centre + noise.to(centre.device)
    rows.used.fill_(count)
