#!/usr/bin/env bash
# transformers 5.24.0 cannot load a tokenizer that transformers 4.33.3 saved, if an additional special token was given
# as an AddedToken: AutoTokenizer raises a TypeError, which names no file. transformers 4.57.3 loads the same folder.
#
# 4.33.3 writes special_tokens_map.json with a list of objects at additional_special_tokens, and a tokenizer_config.json
# that has no added_tokens_decoder. transformers 5 reads the former only where the latter has none, and passes these
# objects on as they are, while it makes an AddedToken of each object at extra_special_tokens, the new name of the list.
# Met when tokens were read that only special_tokens_map.json names, as in the folders of older models.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
install() { # NAME PACKAGE...: an environment
    python3 -m venv "$folder/$1"
    "$folder/$1/bin/pip" install --quiet "${@:2}"
}
install writer transformers==4.33.3 tokenizers==0.13.3 numpy==1.26.4
install v4 transformers==4.57.3 tokenizers==0.22.1
install v5 transformers==5.24.0 tokenizers==0.23.3
cd "$folder"
writer/bin/python - 2> /dev/null <<'PYTHON'
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AddedToken, PreTrainedTokenizerFast

words = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1, "b": 2}, unk_token="<unk>"))
words.pre_tokenizer = pre_tokenizers.Whitespace()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>")
tokenizer.add_special_tokens({"additional_special_tokens": [AddedToken("<x>")]})
tokenizer.save_pretrained("saved")
PYTHON
cat > load.py <<'PYTHON'
import sys

import transformers

try:
    seen = transformers.AutoTokenizer.from_pretrained("saved")("a <x> b")["input_ids"]
except TypeError as error:
    seen = f"TypeError: {error}"
print(f"transformers {transformers.__version__}, ids of a <x> b (expected: [1, 3, 2]): {seen}")
wanted = [1, 3, 2] if sys.argv[1] == "loads" else "TypeError: Input must be a List[Union[str, AddedToken]]"
if seen != wanted:
    sys.exit(f"Changed: with transformers {transformers.__version__} the result is not {wanted}.")
PYTHON
v4/bin/python load.py loads 2> log || { tail -n 1 log >&2; exit 1; }
v5/bin/python load.py fails 2> log || { tail -n 1 log >&2; exit 1; }
# Output seen (2026-11-28, Debian 12, x86-64, Python 3.11):
# transformers 4.57.3, ids of a <x> b (expected: [1, 3, 2]): [1, 3, 2]
# transformers 5.24.0, ids of a <x> b (expected: [1, 3, 2]): TypeError: Input must be a List[Union[str, AddedToken]]
