"""Write the data of the toy suite: python tests/plugin/make_data.py"""

import json
from pathlib import Path

from toy_plugin.suite import make_examples

for split, n in (("train", 24), ("dev", 4), ("test", 8)):
    lines = [json.dumps(example) for example in make_examples(split, n)]
    (Path(__file__).parent / "toy_plugin" / "data" / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
