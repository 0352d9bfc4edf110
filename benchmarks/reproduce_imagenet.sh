#!/usr/bin/env bash
# The published tables on ImageNet-1k, measured beside published.
#
#   benchmarks/reproduce_imagenet.sh /path/to/imagenet [--device cuda --amp -b 256 -j 16 ...]
#
# The folder (or the tar files in it) holds `validation/` with a folder of images per class. All
# further options go to `vitfold validate`; `--limit 5000` gives a first look. Each row is written
# to results/imagenet/ when it is done, and is not run again. The shares of the DeiT-S rows are the
# published GFLOPs over the 4.6 of the dense model.
set -euo pipefail

if [ $# -lt 1 ]; then
    sed -n '2,10s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
data=$1
shift
out=${RESULTS:-results/imagenet}
mkdir -p "$out"

DEIT=deit_small_patch16_224.fb_in1k
VIT=vit_base_patch16_224.augreg_in21k_ft_in1k
SAM=vit_base_patch16_224.sam_in1k
LARGE=vit_large_patch16_224.augreg_in21k_ft_in1k

# name | published top-1 | model | options
rows() {
    local method gflops top1
    echo "deit-s dense|79.8|$DEIT|--method tome --r 0"
    while read -r method gflops top1; do
        share=$(awk "BEGIN { printf \"%.4f\", $gflops / 4.6 }")
        echo "deit-s $method $gflops|$top1|$DEIT|--method $method --flops $share"
    done <<-END
	tome 3.6 79.51
	dfe 3.6 79.69
	lgtm 3.6 79.61
	tome 3.1 79.29
	dfe 3.2 79.55
	lgtm 3.3 79.38
	tome 2.8 78.96
	dfe 2.9 79.53
	lgtm 3.0 79.42
	tome 2.5 78.32
	dfe 2.5 78.25
	lgtm 2.5 78.61
	tome 2.3 78.03
	dfe 2.3 77.48
	lgtm 2.4 78.33
	END
    echo "vit-b dense|84.58|$VIT|--method tome --r 0"
    echo "vit-b r=16 skip 0|80.44|$VIT|--method tome --r 16"
    echo "vit-b r=16 skip 2|83.40|$VIT|--method dfe --r 16 --method-kwargs skip=2"
    echo "vit-b sam dense|80.28|$SAM|--method tome --r 0"
    echo "vit-b sam r=16 skip 0|79.32|$SAM|--method tome --r 16"
    echo "vit-b sam r=16 skip 2|80.27|$SAM|--method dfe --r 16 --method-kwargs skip=2"
    while read -r cue drop merge; do
        echo "vit-l r=7 drop $cue|$drop|$LARGE|--method drop --r 7 --method-kwargs cue=$cue"
        echo "vit-l r=7 merge $cue|$merge|$LARGE|--method tome --r 7 --method-kwargs cue=$cue"
    done <<-END
	random 2.96 61.89
	x_pre 82.1 83.18
	x_attn 81.58 83.41
	k 71.86 83.51
	q 73.65 83.25
	v 78.9 83.44
	END
}

rows | while IFS='|' read -r name published model options; do
    file="$out/$(echo "$name" | tr ' =' '__').json"
    if [ ! -e "$file" ]; then
        echo "$name" >&2
        # shellcheck disable=SC2086  # options are words
        vitfold validate "$model" --data-dir "$data" $options "$@" --results-file "$file" \
            </dev/null >&2
    fi
done

rows | python3 -c '
import json, pathlib, sys

heads = ["", "published", "measured", "95 % interval", "agrees with dense"]
print("{:28}{:>10}{:>10}  {:18}{}".format(*heads))
for line in sys.stdin:
    name, published, _, _ = line.split("|")
    file = pathlib.Path(sys.argv[1], name.replace(" ", "_").replace("=", "_") + ".json")
    row = json.loads(file.read_text())["rows"][0]
    top1, low, high = (100 * row[key] for key in ("top1", "top1_low", "top1_high"))
    interval, same = f"{low:.2f} to {high:.2f}", 100 * row["agreement"]
    print(f"{name:28}{published:>10}{top1:10.2f}  {interval:18}{same:.2f} %")
' "$out"
