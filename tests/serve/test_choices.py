"""Texts for one prompt read it once, and only prompts are kept."""

from collections.abc import Sequence

from torch import Tensor

from linnet.generate.batch import Batch
from linnet.generate.decoder import CHUNK, Decoder, Memory
from linnet.generate.engine import Model
from linnet.generate.sampling import Sampling
from tests.generate.networks import shift
from tests.model.examples import tiny, tokenizer


class CountingDecoder(Decoder):
    """Counts the ids of prompts that it reads."""

    count = 0

    def read(self, ids: Sequence[int], memory: Memory) -> Tensor:
        self.count += len(ids)
        return super().read(ids, memory)


def test_choices_that_come_together_read_their_prompt_once() -> None:
    network = tiny(n_positions=256)
    decoder = CountingDecoder(network, together=True)
    model = Model(network, tokenizer(), decoder=decoder)
    prompt = [number % 256 for number in range(3 * CHUNK + 10)]
    sampling = Sampling(max_new_tokens=4, seed=1, top_p=1.0, temperature=1.0)
    writings = [model.write(prompt, sampling, choice=choice) for choice in range(5)]
    batch = Batch(decoder, prompts=model.prompts)
    for writing in writings:
        batch.add(writing)
    while len(batch):
        batch.step()
    assert decoder.count == 3 * CHUNK + 5 * 9
    alone = [model.write(prompt, sampling, choice=choice).complete().token_ids for choice in range(5)]
    assert [writing.tokens for writing in writings] == alone


def test_windows_that_have_moved_are_not_kept() -> None:
    network = tiny(n_positions=256)
    shift(network, tokenizer().end_of_text, by=-100.0)
    decoder = Decoder(network, together=True)
    model = Model(network, tokenizer(), decoder=decoder)
    prompt = [number % 256 for number in range(2 * CHUNK + 10)]
    completion = model.write(prompt, Sampling(max_new_tokens=1000, seed=1)).complete()
    assert completion.tokens == 1000
    assert len(model.prompts.chunks) == 2
