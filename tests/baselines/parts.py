"""What the tests of the baselines share."""

TINY = (
    "--dataset",
    "photos",
    "--net_type",
    "smallnet",
    "--train_size",
    "300",
    "--val_portion",
    "0",
    "--epoch",
    "1",
    "--batch_size",
    "64",
    "--num_of_multiTarget_diffCls",
    "3",
    "--marked_samples_per_user",
    "3",
    "--num_of_non_member_user",
    "30",
    "--device",
    "cpu",
)
