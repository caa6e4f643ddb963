"""The trials of `check`, in their order: each compares ModelNew with Model in one respect."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from convsmith.kernelbench.cases import Layout, Values
from convsmith.kernelbench.report import Row
from convsmith.kernelbench.trials import (
    accuracy,
    arguments,
    full_size,
    gradients,
    interface,
    memory,
    reuse,
    values,
)
from convsmith.kernelbench.trials.subject import Subject

# A trial yields its rows; a later row of the same test takes the place of the earlier one.
Trial = Callable[[Subject, str], Iterator[Row]]

TRIALS: dict[str, Trial] = {
    "constructor's signature": interface.constructor_signature,
    "forward's signature": interface.forward_signature,
    "parameters and buffers": interface.parameters,
    "state_dict, loaded both ways": interface.state_dict,
    "equal weights from equal seeds": interface.equal_weights,
    "the problem's inputs": full_size.forward_of_problem,
    "rand": partial(values.forward_of_values, values=Values.RAND),
    "randn": partial(values.forward_of_values, values=Values.RANDN),
    "wide range": partial(values.forward_of_values, values=Values.WIDE),
    "negative": partial(values.forward_of_values, values=Values.NEGATIVE),
    "zeros": partial(values.forward_of_values, values=Values.ZEROS),
    "inf and NaN": values.forward_of_specials,
    "other batches": values.forward_of_batches,
    "other heights and widths": values.forward_of_sizes,
    "every second column of a tensor": partial(
        values.forward_of_layout, layout=Layout.EVERY_SECOND_COLUMN
    ),
    "a transposed tensor": partial(values.forward_of_layout, layout=Layout.TRANSPOSED),
    "an expanded tensor": partial(values.forward_of_layout, layout=Layout.EXPANDED),
    "an address that is no multiple of 16": partial(
        values.forward_of_layout, layout=Layout.MISALIGNED
    ),
    "a channels_last tensor": partial(values.forward_of_layout, layout=Layout.CHANNELS_LAST),
    "another stream": values.on_another_stream,
    "twice in a row": reuse.twice_in_a_row,
    "same address, new contents": reuse.same_address_new_contents,
    "an earlier result is kept": reuse.earlier_result_kept,
    "changed weights": reuse.changed_weights,
    "inputs and weights unchanged": memory.arguments_unchanged,
    "no write outside its tensors": memory.writes_outside,
    "gradients": gradients.each_gradient,
    "gradients, other input layouts": gradients.input_layouts,
    "gradients, other upstream layouts": gradients.upstream_layouts,
    "gradients, only some of them": gradients.only_some_gradients,
    "gradients, used twice in one graph": gradients.twice_in_one_graph,
    "gradients of the problem's inputs": full_size.gradients_of_problem,
    "training mode": gradients.training_mode,
    "other constructor arguments": arguments.other_arguments,
    "accuracy, TF32 class": partial(accuracy.accuracy, tf32=True),
    "accuracy, float32 class": partial(accuracy.accuracy, tf32=False),
}
