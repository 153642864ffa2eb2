"""The figures of the paper that ours are compared with, and what each of its tables and figures varies.

Chen and Pattabiraman, CCS'25; FPR@100%TPR and accuracies in %, drops in points, CIFAR-100 unless it says otherwise.
Public: MAIN, COMPONENTS, COUNTERMEASURES, COUNTERMEASURES_MANY, MAIN_SETTING, TABLE_5, TABLE_8, TABLE_9.
"""

# FPR@100%TPR, accuracy, drop of the accuracy.
MAIN = {
    "Table 1": {
        "cifar100": (0.00, 66.34, -0.41),
        "cifar10": (0.00, 90.64, -0.50),
        "celeba": (0.00, 69.41, -0.63),
        "artbench": (0.00, 59.46, -0.42),
        "tinyimagenet": (0.00, 67.22, -0.40),
    },
    "Table 6": {
        "wideresnet284": (0.00, 66.34, -0.41),
        "resnet": (0.00, 64.49, -0.69),
        "resnext": (0.00, 63.43, -0.47),
        "densenet": (0.00, 67.14, -0.16),
        "googlenet": (0.00, 69.09, -0.33),
        "senet": (0.00, 65.26, -0.37),
    },
    "Table 7": {
        25000: (0.00, 66.34, -0.41),
        20000: (0.00, 63.73, -0.16),
        15000: (0.00, 58.99, -0.83),
        10000: (0.00, 50.28, -0.09),
        5000: (0.00, 35.74, -0.10),
    },
    "Table 2": {
        20: (0.00, None, -0.44),
        50: (0.00, None, -0.56),
        100: (0.00, None, -1.39),
        200: (0.00, None, -2.32),
        300: (0.00, None, -4.47),
        500: (0.00, None, -8.93),
    },
}
# FPR@100%TPR by (samples per user, marked): set-based from Table 8 (and section 5.1), instance-based from Tables 9 and
# 10; 100 users.
COMPONENTS = {
    (25, True): (0.00, 7.97),
    (15, True): (0.00, 20.47),
    (10, True): (0.18, 36.09),
    (5, True): (0.64, None),
    (25, False): (None, 56.32),
    (15, False): (0.34, 54.79),
    (10, False): (1.54, None),
    (5, False): (7.18, 49.33),
}
# Table 8, 100 users: FPR@100%TPR by (what is done to the samples, samples per user). The conversion of the paper lost
# the names of its second and third row; they are given here in the order in which the text names the variants.
TABLE_8 = {
    ("blend and noise", 15): 0.00,
    ("blend and noise", 10): 0.18,
    ("blend and noise", 5): 0.64,
    ("blend only", 15): 0.10,
    ("blend only", 10): 0.96,
    ("blend only", 5): 4.62,
    ("noise only", 15): 0.06,
    ("noise only", 10): 0.40,
    ("noise only", 5): 1.80,
    ("unmarked", 15): 0.34,
    ("unmarked", 10): 1.54,
    ("unmarked", 5): 7.18,
}
# Table 9, 100 users: FPR@100%TPR by (kind, samples per user).
TABLE_9 = {
    ("instance-based", 10): 36.09,
    ("instance-based", 15): 20.47,
    ("instance-based", 25): 7.97,
    ("set-based", 10): 0.18,
    ("set-based", 15): 0.00,
    ("set-based", 25): 0.00,
}
# Table 5: FPR@100%TPR by (share of the 50 marked samples that is used, many users or few: 100 and 5).
TABLE_5 = {
    (1.0, "many"): 0.00,
    (0.9, "many"): 0.02,
    (0.7, "many"): 0.02,
    (0.5, "many"): 0.28,
    (0.3, "many"): 20.12,
    (0.2, "many"): 76.34,
    (1.0, "few"): 0.00,
    (0.9, "few"): 0.00,
    (0.7, "few"): 0.04,
    (0.5, "few"): 0.34,
    (0.3, "few"): 2.46,
    (0.2, "few"): 6.82,
}
# Section 5.2, one user: FPR@100%TPR, accuracy, drop by (countermeasure, its main setting). Table 4 has DP-SGD.
COUNTERMEASURES = {
    ("none", None): (0.00, 66.34, None),
    ("dp_sgd", 0.01): (0.01, 60.10, -6.24),
    ("dp_sgd", 0.03): (0.02, 57.26, None),
    ("dp_sgd", 0.05): (0.38, 54.70, None),
    ("dp_sgd", 0.2): (1.07, 51.56, None),
    ("dp_sgd", 0.3): (3.10, 50.03, None),
    ("selena", None): (0.97, None, -2.17),
    ("hamp", None): (0.83, None, -1.42),
    ("randaugment", 15): (11.54, 54.09, None),
    ("fine_tuning", 0.05): (0.5, None, -2.9),
    ("fine_tuning", 0.1): (4.4, None, -5.97),
    ("pruning", 0.7): (0.02, None, -11.8),
    ("pruning", 0.8): (1.16, None, -36.9),
    ("output_noise", 5.0): (0.00, 52.05, None),
    ("label_only", None): (0.04, None, None),
}
# Section 5.2.5, 25 users.
COUNTERMEASURES_MANY = {("none", None): (0.00, None, None), ("fine_tuning", 0.05): (21.4, None, -2.09)}
# The setting of each countermeasure that the paper varies.
MAIN_SETTING = {
    "dp_sgd": "noise_multiplier",
    "randaugment": "operations",
    "gaussian_noise": "std",
    "fine_tuning": "lr",
    "pruning": "amount",
    "output_noise": "sigma",
    "early_stopping": "share",
    "dropout": "rate",
}
