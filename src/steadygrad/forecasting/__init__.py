"""What will go wrong, said before it does."""

from steadygrad.forecasting.module import forecast as forecast
from steadygrad.forecasting.result import Forecast as Forecast
from steadygrad.forecasting.result import LayerGain as LayerGain
