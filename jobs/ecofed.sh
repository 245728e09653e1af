#!/bin/sh
# The runs of the EcoFed study on the reduced network, into runs/ecofed. Started again, it leaves out what is finished.
# What is added goes to run_set.py: jobs/ecofed.sh -n 3 data.root=FOLDER; --list says what there is to do.
#
# Every method starts from the same network: as drawn from the seed (random), or with the first two units from
# Fashion-MNIST (pretrained). Clients are equal (iid) or have five classes at most (shards).
jobs=$(dirname "$0")
set=$jobs/configs/ecofed
pretrained=runs/ecofed/fashion.safetensors
result=0

study() {
    out=$1
    shift
    python "$jobs/run_set.py" -o "runs/ecofed/$out" "$@"
    status=$?
    case $status in
        0) ;;
        130 | 141) exit $status ;;  # interrupted, or nobody reads
        3) [ $result -ne 0 ] || result=3 ;;  # no data
        *) result=1 ;;
    esac
}

case " $* " in
    *" --list "*) ;;
    *) [ -e "$pretrained" ] || fedmpi pretrain "$jobs/configs/pretrain/desk_fashion.yaml" -o "$pretrained" || exit ;;
esac
shards="partition.name=shards partition.shards_per_client=5 partition.samples_per_shard=100"
weights="model.pretrained=$pretrained"
for method in fedavg splitfed lgl fedgkt ecofed; do
    # shellcheck disable=SC2086  # several words each
    study iid-random "$set/desk_$method.yaml" "$@"
    study iid-pretrained "$set/desk_$method.yaml" $weights "$@"
    study shards-random "$set/desk_$method.yaml" $shards "$@"
    study shards-pretrained "$set/desk_$method.yaml" $shards $weights "$@"
done
for period in 1 4 8; do
    study "iid-pretrained-period$period" "$set/desk_ecofed.yaml" $weights algorithm.period=$period "$@"
done
for bits in 4 2; do
    study "iid-pretrained-bits$bits" "$set/desk_ecofed.yaml" $weights algorithm.bits=$bits "$@"
done
study iid-pretrained-bits2-feedback "$set/desk_ecofed.yaml" $weights algorithm.bits=2 algorithm.error_feedback=true "$@"
study iid-pretrained-bits4-period8 "$set/desk_ecofed.yaml" $weights algorithm.bits=4 algorithm.period=8 "$@"
exit $result
