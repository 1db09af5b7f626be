"""The names of `PLACES` for editors and type checkers."""

from litpeft.adapters import Adapter as Adapter
from litpeft.adapters import DoRA as DoRA
from litpeft.adapters import Frozen as Frozen
from litpeft.adapters import Full as Full
from litpeft.adapters import LoRA as LoRA
from litpeft.adapters import NormalisedUpdate as NormalisedUpdate
from litpeft.adapters import Peft as Peft
from litpeft.adapters import QDoRA as QDoRA
from litpeft.adapters import QLoRA as QLoRA
from litpeft.adapters import Untrained as Untrained
from litpeft.api.comparisons import Comparison as Comparison
from litpeft.api.comparisons import compare as compare
from litpeft.api.comparisons import sweep as sweep
from litpeft.api.runs import Run as Run
from litpeft.api.runs import fit as fit
from litpeft.api.runs import load_run as load_run
from litpeft.data import GLUE as GLUE
from litpeft.data import IMDB as IMDB
from litpeft.data import SST2 as SST2
from litpeft.data import AGNews as AGNews
from litpeft.data import Alpaca as Alpaca
from litpeft.data import ArithmeticInstructions as ArithmeticInstructions
from litpeft.data import Conversations as Conversations
from litpeft.data import FineTuneData as FineTuneData
from litpeft.data import Food101 as Food101
from litpeft.data import ImageFolder as ImageFolder
from litpeft.data import Text as Text
from litpeft.data import TextClassification as TextClassification
from litpeft.data import TextMultiLabel as TextMultiLabel
from litpeft.data import TextRegression as TextRegression
from litpeft.errors import UserError as UserError
from litpeft.tasks import CausalLM as CausalLM
from litpeft.tasks import FineTuner as FineTuner
from litpeft.tasks import ImageClassification as ImageClassification
from litpeft.tasks import Seq2SeqLM as Seq2SeqLM
from litpeft.tasks import SequenceClassification as SequenceClassification
from litpeft.tasks import SequenceMultiLabel as SequenceMultiLabel
from litpeft.tasks import SequenceRegression as SequenceRegression

__version__: str
PLACES: dict[str, tuple[str, ...]]
