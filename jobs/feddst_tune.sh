#!/bin/sh
# The runs that FedAvgM's settings in configs/feddst are chosen by, on a seed that the study has not, into
# runs/feddst_tune. Takes what run_set.py takes: jobs/feddst_tune.sh -n 8 --only 'cifar10_*' data.root=FOLDER
jobs=$(dirname "$0")
set=$jobs/configs/feddst
result=0
for lr in 0.3 1; do
    for momentum in 0 0.5 0.9; do
        python "$jobs/run_set.py" -o "runs/feddst_tune/lr$lr-momentum$momentum" \
            "$set/cifar10_fedavgm.yaml@100" "$set/fashion_fedavgm.yaml@100" \
            rounds=100 algorithm.server_lr=$lr algorithm.server_momentum=$momentum "$@"
        status=$?
        case $status in
            0) ;;
            130 | 141) exit $status ;;  # interrupted, or nobody reads
            3) [ $result -ne 0 ] || result=3 ;;  # no data
            *) result=1 ;;
        esac
    done
done
exit $result
