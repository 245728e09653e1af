#!/bin/sh
# The bytes of EcoFed's headline by real messages of the whole networks, into runs/ecofed_headline: a client a round, as
# bytes a client and round do not depend on how many there are. EcoFed's rounds are an update and a replay, twice; the
# others' are one. Some minutes a run on one core. jobs/ecofed_headline.sh data.root=FOLDER
jobs=$(dirname "$0")
set=$jobs/configs/ecofed
# The first round would else send seeds in place of weights. Symbols as they are, a byte each, are what papers count.
few="participation.clients_per_round=1 evaluate.every=0 server.initial_model=full ledger.save_model=false"
result=0

measure() {
    out=$1
    shift
    python "$jobs/run_set.py" -o "runs/ecofed_headline/$out" "$@"
    status=$?
    case $status in
        0) ;;
        130 | 141) exit $status ;;  # interrupted, or nobody reads
        3) [ $result -ne 0 ] || result=3; exit $result ;;  # no data: the other runs take the same
        *) result=1 ;;
    esac
}

for model in vgg11 resnet9; do
    # shellcheck disable=SC2086  # several words
    measure "$model" "$set/paper_ecofed.yaml" $few rounds=4 model.name=$model wire.quantized=packed "$@"
    for method in splitfed lgl fedgkt fedavg; do
        measure "$model" "$set/paper_$method.yaml" $few rounds=1 model.name=$model "$@"
    done
done
# What entropy coding adds, and fewer bits.
for bits in 8 4 2; do
    measure "vgg11-bits$bits" "$set/paper_ecofed.yaml" $few rounds=2 algorithm.bits=$bits "$@"
done
exit $result
