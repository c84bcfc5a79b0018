"""BFCL's own evaluation, run apart from the library: reads cases as JSON lines from standard input and says which are valid.

Only the list of models is stood in for, since it imports every vendor's software. Outputs come as an OpenAI endpoint gives them, and go
through the package's own decoder, runner and checkers."""

import json
import os
import sys
import tempfile
import types

sys.path.insert(0, sys.argv[1])
os.environ |= {"BFCL_PROJECT_ROOT": tempfile.mkdtemp(), "OPENAI_API_KEY": "none"}


class Models(dict):
    def __missing__(self, name):
        return types.SimpleNamespace(underscore_to_dot=True)


models = types.ModuleType("bfcl_eval.constants.model_config")
models.MODEL_CONFIG_MAPPING = Models()
sys.modules[models.__name__] = models

from bfcl_eval import utils
from bfcl_eval.constants.enums import Language, ReturnFormat
from bfcl_eval.eval_checker import eval_runner
from bfcl_eval.model_handler.api_inference.openai_completion import OpenAICompletionsHandler

handler = OpenAICompletionsHandler("m", 0, "m", True)
LANGUAGES = {"simple_java": Language.JAVA, "simple_javascript": Language.JAVASCRIPT}
data = {}


def wire(calls):
    "Calls as the package keeps them of an endpoint's reply, or the words that came instead."
    return [{name: json.dumps(given)} for name, given in calls] or "I cannot do that."


def entry_of(category, id):
    "A question and its golden answer, read again for each case, since the package changes what it is given."
    if category not in data:
        asked = utils.load_dataset_entry(category, include_language_specific_hint=False)
        golden = [None] * len(asked)
        if "relevance" not in category:
            golden = [a["ground_truth"] for a in utils.load_ground_truth_entry(category)]
        data[category] = {e["id"]: json.dumps([e, g]) for e, g in zip(asked, golden)}
    return json.loads(data[category][id])


def valid(number, category, id, output):
    entry, golden = entry_of(category, id)
    if "multi_turn" in category:
        said = [[wire(calls) for calls in turn] for turn in output]
        one = eval_runner._evaluate_single_multi_turn_entry
        return one(handler, id, said, golden, entry, f"m{number}", category)["valid"]
    if "relevance" in category:
        one = eval_runner._evaluate_single_relevance_entry
        return one(handler, id, wire(output), entry, "m", category)["valid"]
    language = LANGUAGES.get(category, Language.PYTHON)
    about = (handler, id, wire(output), golden, entry, "m", category, language)
    return eval_runner._evaluate_single_ast_entry(*about, ReturnFormat.JSON)["valid"]


out, sys.stdout = sys.stdout, sys.stderr
for number, line in enumerate(sys.stdin):
    print(json.dumps(bool(valid(number, *json.loads(line)))), file=out)
