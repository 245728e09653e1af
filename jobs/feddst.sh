#!/bin/sh
# The runs of the FedDST study, into runs/feddst. Started again, it leaves out what is finished. What is added goes to
# run_set.py: jobs/feddst.sh -n 8 --only 'cifar10_*' data.root=FOLDER; --list says what there is to do.
jobs=$(dirname "$0")
set=$jobs/configs/feddst
exec python "$jobs/run_set.py" -o runs/feddst "$set@1" \
    "$set/cifar10_fedavgm.yaml@2" "$set/cifar10_randommask.yaml@2" "$set/cifar10_feddst.yaml@2" \
    "$set/fashion_fedavgm.yaml@2" "$set/fashion_randommask.yaml@2" "$set/fashion_feddst.yaml@2" "$@"
