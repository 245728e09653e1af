#!/bin/sh
# The runs of the FedDST study, into runs/feddst. Started again, it leaves out what is finished. What is added goes to
# run_set.py: jobs/feddst.sh -n 8 --only 'cifar10_*' data.root=FOLDER; --list says what there is to do.
#
# Trials with overrides go to another -o: jobs/feddst.sh -o runs/trial rounds=20. One that is done in runs/feddst has the
# place of the true run, which is refused there until the trial is removed.
#
# Of FedDST's sparsities S (.5, .8, .9, .95; density 1 - S) and alphas (.01, .05, .3) on CIFAR-10 the files are two
# lines, not the product: every S at alpha .01, every alpha at S .8. Any other cell is an override, into another -o:
# python jobs/run_set.py -o runs/feddst_s90_a30 jobs/configs/feddst/cifar10_feddst.yaml@1 \
#     algorithm.density=0.1 algorithm.alpha=0.3
jobs=$(dirname "$0")
set=$jobs/configs/feddst
exec python "$jobs/run_set.py" -o runs/feddst "$set@1" \
    "$set/cifar10_fedavgm.yaml@2" "$set/cifar10_randommask.yaml@2" "$set/cifar10_feddst.yaml@2" \
    "$set/fashion_fedavgm.yaml@2" "$set/fashion_randommask.yaml@2" "$set/fashion_feddst.yaml@2" "$@"
