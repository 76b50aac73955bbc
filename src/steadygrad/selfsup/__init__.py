"""Training without labels: losses, what stands beside the encoder, and the measures of collapse.

Pre-train an ordinary encoder with one of the losses, drop the head, and fine-tune it. The losses show their
embeddings to ``sg.watch``, which says when they collapse: to one vector (rule E101) or into a few directions
(E102).

    encoder = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 32))
    head = sg.selfsup.mlp_head(32, 64, 32)
    optimizer = torch.optim.AdamW([*encoder.parameters(), *head.parameters()], lr=1e-3)
    with sg.watch([encoder, head], optimizer) as run:
        for x in batches:
            optimizer.zero_grad()
            loss = sg.selfsup.nt_xent(head(encoder(augment(x))), head(encoder(augment(x))))
            loss.backward()
            optimizer.step()
    classifier = nn.Sequential(encoder, nn.Linear(32, 10))  # to fine-tune under a watch of its own
"""

from steadygrad.probe.embeddings import alignment as alignment
from steadygrad.probe.embeddings import effective_rank as effective_rank
from steadygrad.probe.embeddings import embedding_spread as embedding_spread
from steadygrad.probe.embeddings import embedding_stats as embedding_stats
from steadygrad.probe.embeddings import show as show
from steadygrad.probe.embeddings import uniformity as uniformity
from steadygrad.selfsup.collapse import Collapse as Collapse
from steadygrad.selfsup.contrastive import info_nce as info_nce
from steadygrad.selfsup.contrastive import nt_xent as nt_xent
from steadygrad.selfsup.masked import DenoisingAutoencoder as DenoisingAutoencoder
from steadygrad.selfsup.masked import MaskedReconstruction as MaskedReconstruction
from steadygrad.selfsup.masked import masked_mse as masked_mse
from steadygrad.selfsup.masked import random_mask as random_mask
from steadygrad.selfsup.modules import EMATeacher as EMATeacher
from steadygrad.selfsup.modules import ema_momentum as ema_momentum
from steadygrad.selfsup.modules import mlp_head as mlp_head
from steadygrad.selfsup.predictive import byol as byol
from steadygrad.selfsup.predictive import simsiam as simsiam
from steadygrad.selfsup.redundancy import barlow_twins as barlow_twins
from steadygrad.selfsup.redundancy import covariance_term as covariance_term
from steadygrad.selfsup.redundancy import variance_term as variance_term
from steadygrad.selfsup.redundancy import vicreg as vicreg
