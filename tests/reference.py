"""Published and independently counted figures of the networks, as integers: what the profile must give.

How each row was got stands behind it; where several letters stand, they agreed to the last digit.
T: torchvision 0.29.2, model built and counted. M: timm 1.0.31, same. K: keras.applications of Keras 3.15.1, same.
H: transformers 5.23, same. C: prototxt files of KaimingHe/deep-residual-networks, parsed. A: akamaster/
pytorch_resnet_cifar10, built and counted. P: a PyTorch model written from the cited definition. E: the weights of
mlcommons/tiny. F: arithmetic on layer shapes, written apart from all of these and from this package:
conv = co * ci / groups * k * k (+ co with bias), norm = 2c trainable and 2c moving, dense = C * K + K.
"""

from __future__ import annotations

from typing import Any, NamedTuple


class Counts(NamedTuple):
    """At batch 1 and the variant's own size; MACs and activations of convolutions and dense layers only."""

    params: int  # trainable scalars
    total: int  # with moving statistics: Keras' count_params()
    macs: int
    acts: int  # scalars that convolutions and dense layers output
    conv: int  # convolution layers
    bn: int  # BatchNormalization layers


COUNTS: dict[str, Counts] = {
    "resnet18": Counts(11_689_512, 11_699_112, 1_814_073_344, 2_484_712, 20, 20),  # TMHF
    "resnet34": Counts(21_797_672, 21_814_696, 3_663_761_408, 3_739_112, 36, 36),  # TMF
    "resnet50": Counts(25_557_032, 25_610_152, 4_089_184_256, 11_114_984, 53, 53),  # TMHF
    "resnet101": Counts(44_549_160, 44_654_504, 7_801_405_440, 16_232_936, 104, 104),  # TMF
    "resnet152": Counts(60_192_808, 60_344_232, 11_513_626_624, 22_555_112, 155, 155),  # TMF
    "resnet200": Counts(64_673_832, 64_849_832, 15_007_481_856, 32_188_904, 203, 203),  # MF
    "resnet50_v1": Counts(25_557_032, 25_610_152, 3_857_973_248, 10_588_136, 53, 53),  # CF
    "resnet101_v1": Counts(44_549_160, 44_654_504, 7_570_194_432, 15_706_088, 104, 104),  # CF
    "resnet152_v1": Counts(60_192_808, 60_344_232, 11_282_415_616, 22_028_264, 155, 155),  # CF
    "resnet50_v2": Counts(25_568_360, 25_613_800, 3_482_255_360, 9_271_016, 53, 49),  # KF
    "resnet101_v2": Counts(44_577_896, 44_675_560, 7_194_476_544, 14_388_968, 104, 100),  # KF
    "resnet152_v2": Counts(60_236_904, 60_380_648, 10_906_697_728, 20_711_144, 155, 151),  # KF
    "resnetv2_18": Counts(11_687_720, 11_695_528, 1_814_073_344, 2_484_712, 20, 17),  # MF
    "resnetv2_34": Counts(21_795_880, 21_811_112, 3_663_761_408, 3_739_112, 36, 33),  # MF
    "resnetv2_50": Counts(25_549_352, 25_594_792, 4_089_184_256, 11_114_984, 53, 49),  # MF
    "resnetv2_101": Counts(44_541_480, 44_639_144, 7_801_405_440, 16_232_936, 104, 100),  # MF
    "resnetv2_152": Counts(60_185_128, 60_328_872, 11_513_626_624, 22_555_112, 155, 151),  # MF
    "resnext50_32x4d": Counts(25_028_904, 25_097_128, 4_230_479_872, 14_401_512, 53, 53),  # TMF
    "resnext101_32x8d": Counts(88_791_336, 88_994_216, 16_414_015_488, 31_210_472, 104, 104),  # TMF
    "resnext101_64x4d": Counts(83_455_272, 83_658_152, 15_460_270_080, 31_210_472, 104, 104),  # TF
    "wide_resnet50_2": Counts(68_883_240, 68_951_464, 11_398_021_120, 14_401_512, 53, 53),  # TMF
    "wide_resnet101_2": Counts(126_886_696, 127_024_552, 22_753_050_624, 21_225_448, 104, 104),  # TMF
    "plain18": Counts(11_515_688, 11_523_496, 1_794_805_760, 2_309_096, 17, 17),  # PF
    "plain34": Counts(21_623_848, 21_639_080, 3_644_493_824, 3_563_496, 33, 33),  # PF
    "cifar_resnet8": Counts(78_186, 78_666, 12_501_632, 86_026, 9, 7),  # EF; activations F
    # AF; activations F: 57,344 n + 16,394, layers 6 n + 1, at depth 6 n + 2. Plain networks: F, as with shortcut A.
    "cifar_resnet20": Counts(269_722, 271_098, 40_551_040, 188_426, 19, 19),
    "cifar_resnet32": Counts(464_154, 466_426, 68_862_592, 303_114, 31, 31),
    "cifar_resnet44": Counts(658_586, 661_754, 97_174_144, 417_802, 43, 43),
    "cifar_resnet56": Counts(853_018, 857_082, 125_485_696, 532_490, 55, 55),
    "cifar_resnet110": Counts(1_727_962, 1_736_058, 252_887_680, 1_048_586, 109, 109),
    "cifar_resnet1202": Counts(19_421_274, 19_510_906, 2_829_238_912, 11_485_194, 1201, 1201),
    "cifar_plain20": Counts(269_722, 271_098, 40_551_040, 188_426, 19, 19),
    "cifar_plain32": Counts(464_154, 466_426, 68_862_592, 303_114, 31, 31),
    "cifar_plain44": Counts(658_586, 661_754, 97_174_144, 417_802, 43, 43),
    "cifar_plain56": Counts(853_018, 857_082, 125_485_696, 532_490, 55, 55),
    "cifar_plain110": Counts(1_727_962, 1_736_058, 252_887_680, 1_048_586, 109, 109),
    "cifar_resnet110_v2": Counts(1_727_962, 1_736_058, 252_887_680, 1_048_586, 109, 109),  # PF
    "cifar_resnet164_v2": Counts(1_703_258, 1_727_482, 244_500_992, 3_227_658, 166, 163),  # PF
    "cifar_resnet1001_v2": Counts(10_327_706, 10_476_922, 1_487_849_984, 19_226_634, 1003, 1000),  # PF
}


class Option(NamedTuple):
    """A variant with some fields of its spec changed."""

    variant: str
    changes: dict[str, Any]
    counts: Counts

    def __str__(self) -> str:
        return "-".join([self.variant, *(f"{name}={value}" for name, value in self.changes.items())])


OPTIONS: tuple[Option, ...] = (
    # Shortcut A has the layers of the plain network; PF.
    Option("resnet18", {"shortcut": "A"}, COUNTS["plain18"]),
    Option("resnet34", {"shortcut": "A"}, COUNTS["plain34"]),
    Option("resnet18", {"shortcut": "C"}, Counts(12_043_816, 12_055_464, 1_878_298_624, 3_061_736, 25, 25)),  # PF
    Option("resnet34", {"shortcut": "C"}, Counts(22_716_840, 22_739_624, 3_830_747_136, 4_943_336, 49, 49)),  # PF
    # AF; B adds 2,752 parameters, 192 statistics, 262,144 MACs, 12,288 activations and two projections to A.
    Option("cifar_resnet20", {"shortcut": "B"}, Counts(272_474, 274_042, 40_813_184, 200_714, 21, 21)),
    Option("cifar_resnet32", {"shortcut": "B"}, Counts(466_906, 469_370, 69_124_736, 315_402, 33, 33)),
    Option("cifar_resnet44", {"shortcut": "B"}, Counts(661_338, 664_698, 97_436_288, 430_090, 45, 45)),
    Option("cifar_resnet56", {"shortcut": "B"}, Counts(855_770, 860_026, 125_747_840, 544_778, 57, 57)),
    Option("cifar_resnet110", {"shortcut": "B"}, Counts(1_730_714, 1_739_002, 253_149_824, 1_060_874, 111, 111)),
    Option(
        "cifar_resnet1202", {"shortcut": "B"}, Counts(19_424_026, 19_513_850, 2_829_501_056, 11_497_482, 1203, 1203)
    ),
    # F; C adds 224 n statistics, 28,672 n activations and 3 n projections to A.
    Option("cifar_resnet20", {"shortcut": "C"}, Counts(283_962, 286_010, 42_648_192, 274_442, 28, 28)),
    Option("cifar_resnet56", {"shortcut": "C"}, Counts(900_858, 906_938, 132_301_440, 790_538, 82, 82)),
    Option("cifar_resnet110", {"shortcut": "C"}, Counts(1_826_202, 1_838_330, 266_781_312, 1_564_682, 163, 163)),
    # Pre-activation; its projection has no BatchNormalization. PF.
    Option("cifar_resnet110_v2", {"shortcut": "B"}, Counts(1_730_522, 1_738_618, 253_149_824, 1_060_874, 111, 109)),
    # mlcommons/tiny's other widths: the default of its `resnet_v1_eembc`, and `pretrainedResnet_large`. EF
    Option("cifar_resnet8", {"widths": (26, 52, 104)}, Counts(204_526, 205_306, 32_562_192, 139_786, 9, 7)),
    Option("cifar_resnet8", {"widths": (40, 80, 160)}, Counts(481_530, 482_730, 76_473_920, 215_050, 9, 7)),
)

STRIDE_ON_3X3_MACS = {"cifar_resnet164_v2": 247_646_720, "cifar_resnet1001_v2": 1_490_995_712}  # F; same parameters

# Trainable scalars with another number of classes: (C + 1) a class, C = 512 or 2048, 64 for CIFAR. F
CLASSES: dict[tuple[str, int], int] = {
    ("resnet18", 10): 11_181_642,
    ("resnet34", 10): 21_289_802,
    ("resnet50", 10): 23_528_522,
    ("resnet101", 10): 42_520_650,
    ("resnet152", 10): 58_164_298,
    ("resnet18", 100): 11_227_812,
    ("resnet50", 100): 23_712_932,
    ("cifar_resnet20", 100): 275_572,
    ("cifar_resnet32", 100): 470_004,
    ("cifar_resnet44", 100): 664_436,
    ("cifar_resnet56", 100): 858_868,
    ("cifar_resnet110", 100): 1_733_812,
    ("cifar_resnet1202", 100): 19_427_124,
}

# Trainable scalars without the head. F
HEADLESS = {
    "resnet18": 11_176_512,
    "resnet34": 21_284_672,
    "resnet50": 23_508_032,
    "resnet101": 42_500_160,
    "resnet152": 58_143_808,
}

# MACs at other image sizes. F; 299 also K for ResNet50V2
MACS_AT: dict[int, dict[str, int]] = {
    160: {
        "resnet18": 925_798_400,
        "resnet34": 1_869_516_800,
        "resnet50": 2_087_321_600,
        "resnet50_v1": 1_969_356_800,
        "resnet101": 3_981_312_000,
        "resnet152": 5_875_302_400,
    },
    176: {
        "resnet18": 1_168_343_040,
        "resnet34": 2_337_374_208,
        "resnet50": 2_608_132_096,
        "resnet50_v1": 2_468_409_344,
        "resnet101": 4_899_860_480,
        "resnet152": 7_191_588_864,
    },
    256: {
        "resnet18": 2_369_245_184,
        "resnet34": 4_785_164_288,
        "resnet50": 5_340_348_416,
        "resnet50_v1": 5_038_358_528,
        "resnet101": 10_188_963_840,
        "resnet152": 15_037_579_264,
    },
    288: {
        "resnet18": 2_998_439_936,
        "resnet34": 6_056_087_552,
        "resnet50": 6_758_334_464,
        "resnet50_v1": 6_376_128_512,
        "resnet101": 12_894_863_360,
        "resnet152": 19_031_392_256,
    },
    299: {"resnet50_v2": 6_536_211_200, "resnet101_v2": 13_373_516_544, "resnet152_v2": 20_210_821_888},
}

# Other people's networks, by their names in keras.applications, 224 pixels, 1000 classes.
APPLICATIONS: dict[str, Counts] = {  # KF
    "ResNet50": Counts(25_583_592, 25_636_712, 3_857_973_248, 10_588_136, 53, 53),
    "ResNet101": Counts(44_601_832, 44_707_176, 7_570_194_432, 15_706_088, 104, 104),
    "ResNet152": Counts(60_268_520, 60_419_944, 11_282_415_616, 22_028_264, 155, 155),
    "ResNet50V2": COUNTS["resnet50_v2"],
    "ResNet101V2": COUNTS["resnet101_v2"],
    "ResNet152V2": COUNTS["resnet152_v2"],
}
APPLICATIONS_HEADLESS_TOTAL = {"ResNet50": 23_587_712, "ResNet50V2": 23_564_800}  # K


class Cost(NamedTuple):
    params: int  # trainable scalars
    macs: int


COMPARED: dict[str, Cost] = {
    "VGG16": Cost(138_357_544, 15_470_264_320),  # TMK
    "VGG19": Cost(143_667_240, 19_632_062_464),  # TMK
    "DenseNet121": Cost(7_978_856, 2_834_161_664),  # TMK
    "DenseNet169": Cost(14_149_480, 3_359_843_328),  # T
    "DenseNet201": Cost(20_013_928, 4_291_365_888),  # T
    "MobileNetV2": Cost(3_504_872, 300_774_272),  # T
}

# Input pixels along a side that one position of each stage's last map sees, at strides 4, 8, 16, 32. F: the interval of
# inputs, carried back layer by layer; 435, 427 and 483 also by the support of a gradient (PyTorch, positive weights).
RECEPTIVE_FIELDS: dict[str, tuple[int, ...]] = {
    "resnet18": (43, 99, 211, 435),
    "resnet34": (59, 179, 547, 899),
    "resnet50": (35, 91, 267, 427),
    "resnet50_v1": (35, 99, 291, 483),
    "resnet101": (35, 91, 811, 971),
    "resnet101_v1": (35, 99, 835, 1027),
    "resnet152": (35, 155, 1291, 1451),
    "resnet152_v1": (35, 163, 1315, 1507),
    # The groups and the width of a convolution change nothing about where it reads.
    "resnext50_32x4d": (35, 91, 267, 427),
    "resnext101_32x8d": (35, 91, 811, 971),
    "wide_resnet50_2": (35, 91, 267, 427),
    "wide_resnet101_2": (35, 91, 811, 971),
}

# The same of the last feature map alone.
LAST_RECEPTIVE_FIELD: dict[str, int] = {
    "resnet50_v2": 483,
    "resnet101_v2": 1027,
    "resnet152_v2": 1507,
    "cifar_resnet20": 81,  # 28 n - 3
    "cifar_resnet32": 137,
    "cifar_resnet44": 193,
    "cifar_resnet56": 249,
    "cifar_resnet110": 501,
    "cifar_resnet1202": 5597,
    "cifar_resnet164_v2": 255,
    "cifar_resnet1001_v2": 1557,
}

# Networks of keras.applications: google-research/receptive_field, README (Araujo et al., Distill 2019), whose TF-Slim
# models have the same windows.
DISTILL_RECEPTIVE_FIELD = {"VGG16": 212, "InceptionV3": 1311, "InceptionResNetV2": 3039, "MobileNet": 315}

# Height and width behind the pool and of the four stages, for an image of 193x257. TK
ODD_IMAGE = (193, 257)
ODD_IMAGE_MAPS = ((49, 65), (49, 65), (25, 33), (13, 17), (7, 9))
