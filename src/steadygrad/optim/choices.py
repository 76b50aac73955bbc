"""Where to get each optimizer: torch's, pytorch_optimizer's, or the one here, and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Choice:
    """One candidate. Looked at: torch 2.13 and pytorch_optimizer 4.1.0."""

    name: str
    paper: str  # URL
    verdict: Literal["torch", "pytorch_optimizer", "steadygrad"]  # whose code does the arithmetic of the step
    use: str  # what to write
    why: str
    checked_by: str  # the test in tests/optim that shows it


CHOICES: tuple[Choice, ...] = (
    Choice(
        name="LARS",
        paper="https://arxiv.org/abs/1708.03888",
        verdict="steadygrad",
        use="steadygrad.optim.LARS",
        why="torch has none. pytorch_optimizer writes the momentum into p.grad, moves a layer of zeros by lr ||g||, "
        "and takes the learning rate out of the momentum.",
        checked_by="test_lars_of_others_overwrites_the_gradient_and_leaps_from_zero",
    ),
    Choice(
        name="LAMB",
        paper="https://arxiv.org/abs/1904.00962",
        verdict="steadygrad",
        use="steadygrad.optim.LAMB",
        why="torch has none. pytorch_optimizer divides by 1 - beta1^t after the trust ratio, which makes the first "
        "update ratio ten times the learning rate; it counts ||w|| above 10 as 10, and its weight decay stands "
        "outside the trust ratio by default.",
        checked_by="test_lamb_of_others_starts_ten_times_too_fast_and_clamps_large_layers",
    ),
    Choice(
        name="NovoGrad",
        paper="https://arxiv.org/abs/1905.11286",
        verdict="steadygrad",
        use="steadygrad.optim.NovoGrad",
        why="torch has none. pytorch_optimizer divides p.grad in place and squares norms in the dtype of the "
        "parameter: in float16 a norm of 256 is inf and the layer stops.",
        checked_by="test_novograd_of_others_overwrites_the_gradient_and_overflows_in_half_precision",
    ),
    Choice(
        name="Fromage",
        paper="https://arxiv.org/abs/2002.03432",
        verdict="steadygrad",
        use="steadygrad.optim.Fromage",
        why="torch has none. pytorch_optimizer has the paper's equation, but moves a layer of zeros by lr ||g||, and "
        "its file is licensed for non-commercial use only.",
        checked_by="test_fromage_of_others_leaps_from_zero",
    ),
    Choice(
        name="Nero",
        paper="https://arxiv.org/abs/2102.07227",
        verdict="steadygrad",
        use="steadygrad.optim.Nero",
        why="torch has none. pytorch_optimizer sets the weights of neurons with one input to 0, and after one nan a "
        "neuron's weights stand still for ever while nothing shows it.",
        checked_by="test_nero_of_others_kills_neurons_with_one_input_and_freezes_after_a_nan",
    ),
    Choice(
        name="Adam-atan2",
        paper="https://arxiv.org/abs/2407.05872",
        verdict="steadygrad",
        use="steadygrad.optim.AdamAtan2",
        why="Neither has it.",
        checked_by="test_nobody_else_has_atan2",
    ),
    Choice(
        name="Scion",
        paper="https://arxiv.org/abs/2502.07529",
        verdict="steadygrad",
        use="steadygrad.optim.Scion(steadygrad.optim.scion_groups(model))",
        why="torch has none. In pytorch_optimizer constants of 1e-8 and 1e-7 let the step shrink with small gradients "
        "and it is 0 from norms of 1e19 on; weights of five dimensions raise; the groups are for the user to find.",
        checked_by="test_scion_of_others_depends_on_the_scale_of_the_gradient",
    ),
    Choice(
        name="Muon",
        paper="https://kellerjordan.github.io/posts/muon/",
        verdict="steadygrad",
        use="steadygrad.optim.MuonAdamW(steadygrad.optim.muon_groups(model)); torch.optim.Muon for 2-D weights alone",
        why="torch.optim.Muon is right on matrices. It refuses convolutions, leaves AdamW to a second optimizer, and "
        "its step shrinks for ||G|| < 1e-7 and is 0 from 1e19 on. pytorch_optimizer's has the same constants and "
        "finds the output layer by the word 'head'.",
        checked_by="test_muon_of_torch_is_right_on_matrices_of_usual_scale_and_only_there",
    ),
    Choice(
        name="StableAdamW",
        paper="https://arxiv.org/abs/2304.13013",
        verdict="torch",
        use="torch.optim.AdamW inside steadygrad.clip.clipped_updates",
        why="It is AdamW with update clipping. pytorch_optimizer's agrees, but counts steps by group: a parameter "
        "whose first gradient comes late steps ten times too short.",
        checked_by="test_stableadamw_of_others_is_right_but_for_parameters_that_come_late",
    ),
    Choice(
        name="Adafactor",
        paper="https://arxiv.org/abs/1804.04235",
        verdict="torch",
        use="torch.optim.Adafactor",
        why="The relative step of the paper, with its clipping of the update and floor of 1e-3. Limit: the product of "
        "row and column overflows from gradients of 1e10 on, and the matrix stands still until they leave the average.",
        checked_by="test_adafactor_of_torch_keeps_the_scale_within_its_limits",
    ),
    Choice(
        name="Adam or RMSprop with a largest update ratio",
        paper="https://cs231n.github.io/neural-networks-3/",
        verdict="torch",
        use="any optimizer with steadygrad.optim.BoundedUpdates",
        why="The bound is a rule about the step, whoever takes it.",
        checked_by="test_bound_holds_under_every_kind_of_optimizer",
    ),
    Choice(
        name="Normalised SGD with momentum",
        paper="https://arxiv.org/abs/2002.03305",
        verdict="torch",
        use="torch.optim.SGD after steadygrad.clip.normalise_by_tensor_norm_",
        why="It is SGD on normalised gradients.",
        checked_by="test_normalised_sgd_is_sgd_on_normalised_gradients",
    ),
    Choice(
        name="Sign SGD with momentum",
        paper="https://arxiv.org/abs/1802.04434",
        verdict="pytorch_optimizer",
        use="pytorch_optimizer.SignSGD",
        why="The paper's step, lr for every entry. Limit: maximize=True changes the sign of p.grad in place.",
        checked_by="test_sign_steps_of_others_are_right",
    ),
    Choice(
        name="Lion",
        paper="https://arxiv.org/abs/2302.06675",
        verdict="pytorch_optimizer",
        use="pytorch_optimizer.Lion",
        why="The paper's step, lr for every entry. Limit: maximize=True changes the sign of p.grad in place.",
        checked_by="test_sign_steps_of_others_are_right",
    ),
    Choice(
        name="ADOPT",
        paper="https://arxiv.org/abs/2411.02853",
        verdict="pytorch_optimizer",
        use="pytorch_optimizer.ADOPT(..., weight_decouple=True)",
        why="The paper's step where every parameter has a gradient from the first step on. One whose first gradient "
        "comes late starts from v = 0 and is held by the clipping alone. Its point is convergence, not scale.",
        checked_by="test_adopt_of_others_is_right",
    ),
    Choice(
        name="Stable-SPAM",
        paper="https://arxiv.org/abs/2502.17055",
        verdict="pytorch_optimizer",
        use="pytorch_optimizer.StableSPAM; for the spikes alone steadygrad.clip.SPAM",
        why="Its step does not depend on the scale of the gradient and its state survives a restart. Limit: it leaves "
        "the normalised gradient in p.grad.",
        checked_by="test_stable_spam_of_others_keeps_the_scale_and_restarts",
    ),
    Choice(
        name="SOAP",
        paper="https://arxiv.org/abs/2409.11321",
        verdict="pytorch_optimizer",
        use="pytorch_optimizer.SOAP",
        why="Adam in the eigenbasis of Shampoo: the same step for gradients of 1e-3 and of 1e3. Its point is speed.",
        checked_by="test_soap_of_others_keeps_the_scale_and_restarts",
    ),
    Choice(
        name="Schedule-Free",
        paper="https://arxiv.org/abs/2405.15682",
        verdict="pytorch_optimizer",
        use="pytorch_optimizer.ScheduleFreeAdamW, or its authors' package schedulefree",
        why="Replaces the schedule; the scale of its step is that of Adam. Limit: it overwrites p.grad.",
        checked_by="test_schedule_free_of_others_keeps_the_scale_of_adam",
    ),
    Choice(
        name="Cautious",
        paper="https://arxiv.org/abs/2411.16085",
        verdict="pytorch_optimizer",
        use="cautious=True in pytorch_optimizer's Lion, ADOPT and others",
        why="Leaves out the entries whose step goes against the gradient and makes up for their number; the scale of a "
        "layer's step is that of its optimizer.",
        checked_by="test_cautious_of_others_leaves_out_what_goes_uphill",
    ),
)
"""Every candidate that was looked at."""
