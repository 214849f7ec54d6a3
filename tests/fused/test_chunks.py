import pytest
import torch

from lossworks.fused import chunks
from lossworks.fused.chunks import blocks, chunk_size, slices, tiles


@pytest.mark.parametrize(("rows", "classes"), [(1024, 64_000), (2048, 128_000), (100_000, 50_000), (5000, 3000)])
def test_a_chunk_is_less_than_an_eighth_of_the_logits_and_at_most_256_megabytes(rows, classes):
    size = chunk_size(rows, classes, 4)
    assert size * classes * 4 <= min(rows * classes * 4 / 8, 2**28)
    assert size % 16 == 0 or -(-rows // size) < -(-rows // (size - size % 16))  # an even share needs fewer chunks


def test_few_logits_are_one_chunk():
    assert chunk_size(100, 1000, 4) == 100
    assert chunk_size(0, 1000, 4) == 1


def test_two_matrices_a_chunk_share_its_memory():
    rows = chunk_size(4096, 64_000, 4, copies=2)
    assert 4096 / 8 / 2 * 0.9 < rows < 4096 / 8 / 2


def test_chunks_are_of_even_size():
    for rows in (1000, 1024, 4096, 5001):
        sizes = [part.stop - part.start for part in slices(rows, chunk_size(rows, 64_000, 4))]
        assert max(sizes) - min(sizes) <= 16 * len(sizes)


@pytest.mark.parametrize("says", [{}, {"l2_cache_size": 0}, {"l2_cache_size": 2**20}, {"l2_cache_size": 2**25}])
def test_a_block_fits_the_cache_that_the_machine_names_or_has_enough_numbers_for_a_call(monkeypatch, says):
    chunks._cache_size.cache_clear()
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: says, raising=False)
    block = next(blocks(torch.empty(4096, 1000)))
    chunks._cache_size.cache_clear()
    enough = max(2**17 * torch.get_num_threads(), 2**18)
    wanted = 2**25 // 40 * torch.get_num_threads() if says.get("l2_cache_size") == 2**25 else enough
    assert wanted - 1000 < block.stop * 1000 <= wanted


def test_results_of_blocks_are_counted():
    plain, read = (chunk_size(1024, 64_000, 4, in_blocks=in_blocks) for in_blocks in (False, True))
    block = next(blocks(torch.empty(1024, 64_000)))  # never written, so it takes no memory
    assert read < plain <= read + 16 * block.stop + 16


@pytest.mark.parametrize("size", [1, 3, 7, 100])
def test_the_slices_are_all_rows_once(size):
    taken = [row for part in slices(7, size) for row in range(7)[part]]
    assert taken == list(range(7))


def test_blocks_and_tiles_are_all_of_a_matrix_once():
    matrix = torch.empty(1, 1).expand(9, 300_000)
    assert [row for part in blocks(matrix) for row in range(9)[part]] == list(range(9))
    assert len(list(blocks(matrix))) > 1
    weight = torch.empty(1, 1).expand(10_000, 512)
    assert [c for part in tiles(weight) for c in range(10_000)[part]] == list(range(10_000))
    assert len(list(tiles(weight))) > 1


@pytest.mark.parametrize(("chunk", "error"), [(0, ValueError), (-3, ValueError), (2.0, TypeError), (True, TypeError)])
def test_a_bad_chunk_is_named(chunk, error):
    with pytest.raises(error, match="chunk"):
        chunk_size(10, 10, 4, chunk)
