"""Random domain values for round trips."""

from __future__ import annotations

from hypothesis import strategies as st

from trephine.domain import interventions as iv
from trephine.domain.sites import FeatureRef, Site, SiteKind

int32 = st.integers(0, 2**31 - 1)
signed32 = st.integers(-(2**31), 2**31 - 1)
finite = st.floats(allow_nan=False, allow_infinity=False)
text = st.text(st.characters(exclude_categories=("Cs",)), max_size=20)
filled = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=20)

features = st.builds(FeatureRef, replacement=filled, layer=int32, index=int32)
sites = st.builds(Site, kind=st.sampled_from(SiteKind), layer=int32)
vectors = st.lists(finite, min_size=1, max_size=8).filter(any).map(tuple)
targets = st.one_of(
    st.builds(iv.FeatureTarget, feature=features),
    st.builds(iv.DirectionTarget, site=sites, vector=vectors),
    st.builds(iv.SiteTarget, site=sites),
)


@st.composite
def clamps(draw: st.DrawFn) -> iv.Clamp:
    """One or two ordered bounds."""
    low, high = sorted((draw(finite), draw(finite)))
    which = draw(st.sampled_from(("low", "high", "both")))
    return iv.Clamp(low=None if which == "high" else low, high=None if which == "low" else high)


operations = st.one_of(
    st.builds(iv.Ablate),
    st.builds(iv.Scale, factor=finite),
    st.builds(iv.SetTo, value=finite),
    clamps(),
    st.builds(iv.Add, amount=finite),
    st.builds(iv.AddNormScaled, fraction=finite),
    st.builds(iv.ProjectOut),
    st.builds(iv.MeanAblate, text=filled),
    st.builds(iv.Resample, donor=filled),
)
some = st.lists(signed32, min_size=1, max_size=4).map(tuple)
selectors = st.builds(
    iv.Selector,
    positions=st.none() | some,
    tokens=st.none() | some,
    phases=st.lists(st.sampled_from(iv.Phase), min_size=1, max_size=2).map(tuple),
    exclude_positions=st.just(()) | some,
    exclude_tokens=st.just(()) | some,
)
heads = st.builds(iv.HeadInput, layer=int32, head=int32, role=st.sampled_from(("q", "k")))
modes = st.builds(
    iv.Mode,
    last_layer=st.none() | int32,
    patterns=st.sampled_from(iv.PatternMode),
    heads=st.lists(heads, max_size=3).map(tuple),
    strength=st.just(1.0) | st.floats(0, 1e6),
)
conditions = st.builds(iv.Condition, feature=features, at_least=st.floats(allow_nan=False))
interventions = st.builds(
    iv.Intervention,
    target=targets,
    operation=operations,
    selector=selectors,
    mode=modes,
    condition=st.none() | conditions,
    error_term=st.sampled_from(iv.ErrorTerm),
    label=text,
)
