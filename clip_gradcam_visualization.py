"""Show which regions of an image a CLIP-style model holds against a sentence: Grad-CAM of the similarity.

    python clip_gradcam_visualization.py --model-path checkpoints/clip_model.pth \
        --image-path image.jpg --class-texts "正常假体" "假体松动" "假体周围感染"

writes a figure of four panels and the overlay alone. In Python:

    model = load_clip_checkpoint("checkpoints/clip_model.pth")
    overlay = visualize_clip_gradcam(model, "image.jpg", ["正常假体", "假体松动"], save_path="result.png")

A folder of images goes to figures and tables in one command, on one process or under torchrun.

Top to bottom: the flags, loading, CLIPGradCAM, one image, many images, main. One image goes

    path -> pixels -> model input -> maps at a layer -> heatmap on the image -> figure, overlay

in `run_one`; what the steps need stands in `models/`, a folder for each subject. "The users' guide" is the
contract that the project began with: its flags, its four panels, its Grad-CAM of one layer and the cosine.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import os
import sys
import warnings
import zlib
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from models import savings
from models.chinese_argparse import ChineseArgumentParser
from models.class_texts import ClassText, names_and_texts, read_class_texts, same_texts, text_indices
from models.errors import (
    DEBUG,
    InputError,
    InputWarning,
    check_at_least,
    check_at_most,
    check_language,
    check_written,
    print_error,
    reason,
    say,
    unforeseen,
)
from models.evaluation.measures import GRID, TOLERANCE
from models.explain.capture import undisturbed
from models.explain.defaults import (
    OWN_ENCODERS,
    default_layers,
    encoders_hint,
    get_target_layer_for_clip,
    settings_of,
    tells_presence,
)
from models.explain.faithfulness import measure_faithfulness
from models.explain.heatmap import diagnose_flat_map, text_specificity, to_heatmap
from models.explain.heatmap import show_cam_on_image as show_cam_on_image  # for callers from Python
from models.explain.layers import check_layers, layer_name, layers_name, list_spatial_layers
from models.explain.methods import METHODS, SIMILARITIES, check_method, check_similarity, reads_attention
from models.explain.needs import ForwardPass, Maps
from models.explain.passes import check_embeddings, model_input, placement, through, why_not_finite
from models.explain.question import (
    CONTRAST_GAMMA,
    ImageMaps,
    Others,
    Question,
    Setting,
    TargetScores,
    TextMaps,
    check_question,
    contrastive_directions,
    logits_of,
    others_directions,
    probabilities_of,
    rectangular,
    take_off,
    target_indices,
    target_texts,
)
from models.explain.subject import clip_of
from models.explain.words import ClassWords, words_directions
from models.heavy import functional as F
from models.heavy import torch
from models.images.finding import is_single
from models.images.flatness import describe_flat_picture
from models.images.grey import parse_grey_range
from models.images.loader import ImageDataset
from models.images.naming import file_name
from models.images.preprocessing import DEFAULT_IMG_SIZE, Region, describe_assumed_size, preprocessing_of
from models.images.reading import read_image, to_pixels
from models.loading.fingerprint import fingerprint, text_encoder_fingerprint
from models.loading.living import build_living, library_clip
from models.loading.load import choose_device, embed_texts, load_clip_checkpoint
from models.messages import LANGUAGES, Joined, Message, as_message, can_show_chinese, current_language, speaking
from models.results.colours import BLENDS, COLORMAPS, DEFAULT_COLOURS, Colours, choose_colours
from models.results.formats import FIGURE_FORMATS, OVERLAY_FORMATS, check_output_name
from models.results.page import FIGURE_DPI
from models.results.result import ImageResult, Results
from models.results.saving import (
    DENSITIES,
    HEATMAP_SIZES,
    PANELS,
    OutputChoice,
    encode_outputs,
    save_results,
    summary,
)
from models.runs.evaluating import CaseChoice
from models.runs.joining import join
from models.runs.planning import Plan, Sources, plan_images
from models.runs.reporting import ReportChoice, report_choice
from models.runs.run import Run, finish_run, one_thread
from models.runs.settings import settings_of_run
from models.runs.sharing import Ranks, chunk_size, most_at_once, parse_shard
from models.runs.state import RunState
from models.runs.tables import package_versions
from models.towers.similarity import check_text_features
from models.writing import check_output_folder, write_files

# ---------------------------------------------------------------------------------------------
# 1. Flags

PATH, NAME, TEXT, INT = {"metavar": "PATH"}, {"metavar": "NAME"}, {"metavar": "TEXT"}, {"metavar": "INT", "type": int}
FLOAT = {"metavar": "FLOAT", "type": float}
SEVERAL, SWITCH = {"nargs": "+"}, {"action": "store_true"}

# flag, what argparse is told, help (in Chinese, or a Message)
FLAGS = (
    (
        "--model-path",
        PATH,
        "模型检查点路径（必需）：.pth 或 .safetensors，或 OpenAI、open_clip 的权重，transformers 的 CLIP 文件夹或名称",
    ),
    (
        "--image-path",
        PATH | SEVERAL,
        "图像路径（必需）：图像、文件夹（含子文件夹）或通配符，可以多个；多张图像时另写结果表",
    ),
    ("--class-texts", TEXT | SEVERAL, "类别文本描述列表（与 --class-texts-file 二选一）"),
    ("--class-texts-file", PATH, "类别文本描述 JSON 文件（与 --class-texts 二选一）"),
    (
        "--text-template",
        TEXT | SEVERAL | {"action": "extend"},
        "把每段描述写进模板中 {} 的位置，例如 一张{}的X光片；可以多个：特征取各模板的平均",
    ),
    (
        "--target-text-idx",
        {"metavar": "INT"} | SEVERAL,
        "目标文本的索引（从 0 开始）或短名，可以多个（默认：最相似的文本）",
    ),
    ("--all-texts", SWITCH, "解释全部文本（与 --target-text-idx 二选一）"),
    (
        "--target",
        {"choices": ("predicted", "label")},
        "解释每张图像的预测 predicted（默认），还是列表中它自己的标签 label（与上两项三选一）",
    ),
    ("--contrast", SWITCH, "对比：解释支持该文本而不支持其他文本的方向（两三个文本时常常更差）"),
    (
        "--subtract-others",
        SWITCH,
        "减去其他文本也支持的部分（与 --contrast 二选一；默认方法从三个文本起已经减去，两个文本时常常更差）",
    ),
    ("--image-encoder", NAME, "图像编码器名称（如果无法从检查点获取）"),
    ("--text-encoder", NAME, "文本编码器名称或本地文件夹（默认：bert-base-chinese）"),
    ("--download", SWITCH, "允许从模型库下载参数中写的名称和 CLIP 的词表（默认不联网；也可把名称写成 hub:owner/name）"),
    ("--embed-dim", INT, "嵌入维度（默认：512；检查点中有则以检查点为准）"),
    ("--img-size", INT, "图像大小（默认：224；检查点中有则以检查点为准）"),
    ("--mean", FLOAT | SEVERAL, "图像的均值，1 个或 3 个数（默认：检查点的，否则 ImageNet 的）"),
    ("--std", FLOAT | SEVERAL, "图像的标准差，1 个或 3 个数（与 --mean 一起给出）"),
    (
        "--grey-range",
        {"metavar": "RANGE"} | SEVERAL,
        "超过 8 位的灰度怎样变成 8 位：auto（默认）、full、minmax、两个灰度值（0 4095）或两个百分位（p0.5 p99.5）",
    ),
    (
        "--cases",
        PATH,
        "病例列表：CSV（image 列，可有 label、annotation、patient、split 和别的列）或每行一个路径的文本；"
        "代替或缩小 --image-path",
    ),
    ("--split", NAME | SEVERAL, "只用列表中 split 列是这些值的病例"),
    ("--annotations", PATH, "没有写 annotation 的病例的标注：COCO 文件，或按文件名对应的 LabelMe、掩膜的文件夹"),
    ("--tolerance", FLOAT | {"default": TOLERANCE}, "评估：峰离标注多近算命中，224×224 的像素（默认：15）"),
    ("--output-dir", PATH | {"default": "clip_gradcam_results"}, "输出目录（默认：clip_gradcam_results）"),
    ("--output-name", NAME, "输出文件名（默认：clip_gradcam_<图像名>.png；也可用 .pdf、.svg、.jpg）"),
    (
        "--figure-format",
        {"choices": FIGURE_FORMATS},
        "可视化图的格式（默认：png，或 --output-name 的后缀；pdf、svg 中文字可选中，图像保留原图像素）",
    ),
    ("--dpi", INT, "可视化图的分辨率，72 到 1200（默认：120；印刷常用 300）；叠加图像总是原图大小"),
    (
        "--panels",
        {"nargs": "?", "const": PANELS[0], "choices": PANELS},
        "在各分图左上角标出 (a)、(b) ……；--panels files 另把每个分图存成单独的文件",
    ),
    ("--target-layer", NAME, "目标层的名称，例如 layer4.1（默认：按图像编码器自动选择）"),
    ("--layers", NAME | SEVERAL, "融合多个目标层（与 --target-layer 二选一）；LeGrad 用它指定块"),
    (
        "--method",
        NAME | {"choices": (*METHODS, "all")},
        Message(
            "热力图方法（默认：卷积网络用 local-gradcam，两层，点积；ViT 用 legrad-attention；都减去其他文本。"
            "gradcam 是指南的 Grad-CAM：一层，余弦）：{}；all 把它们与默认并排",
            Joined("、", METHODS),
        ),
    ),
    (
        "--similarity",
        {"choices": SIMILARITIES},
        "解释余弦相似度 cosine 还是点积 dot（默认：方法的，给出 --method 时是 cosine）",
    ),
    ("--faithfulness", SWITCH, "检验热力图：按它删除和插入像素，给出曲线下面积与随机图之差"),
    ("--words", SWITCH, "算出被解释的文本中每个字或词给相似度增加多少（与 --contrast 一起：使它不同于其他文本的词）"),
    ("--list-layers", SWITCH, "列出可作为目标层的层后退出，只需要 --model-path"),
    ("--lang", {"choices": LANGUAGES}, "图、表、帮助和提示的语言：zh 中文（默认），en 英文"),
    (
        "--save-heatmap",
        {"nargs": "?", "const": "all", "choices": tuple(HEATMAP_SIZES)},
        "另存未归一化的热力图（.npy，float32）：原图大小和目标层大小各一份；--save-heatmap layer 只存目标层大小的",
    ),
    ("--no-figure", SWITCH, "不写可视化图"),
    ("--overlay-only", SWITCH, "只写叠加图像"),
    ("--no-overlay", SWITCH, "不写叠加图像；与 --no-figure 一起时只写结果表和报告"),
    ("--overlay-format", {"choices": OVERLAY_FORMATS}, "叠加图像的格式（默认：与可视化图相同；jpg 写得最快）"),
    (
        "--blend",
        {"choices": tuple(BLENDS)},
        "怎样叠加：heat（默认）越热越不透明，冷处就是原图；constant 处处同样不透明",
    ),
    (
        "--colormap",
        NAME,
        Message("热力图的配色：{}（默认：plasma；--blend constant 时 jet）", Joined("、", COLORMAPS)),
    ),
    ("--alpha", FLOAT, "叠加时颜色至多多不透明，大于 0、至多 1（默认：0.5；--blend constant 时 0.4）"),
    ("--resume", SWITCH, "接着上次没有做完的运行，只做缺少的图像"),
    ("--shard", {"metavar": "I/N"}, "只做 N 份中的第 I 份（从 1 开始），各份可在不同的机器上同时运行"),
    ("--join", SWITCH, "把各份合成结果表，或重新写表和评估；只需要 --output-dir"),
    (
        "--report",
        {"action": "store_true", "default": None},
        "写报告 report.html，一个能看全部图像的网页（默认：2 到 2000 张图像时写）",
    ),
    ("--no-report", {"action": "store_false", "dest": "report", "default": None}, "不写报告"),
    ("--anonymous", SWITCH, "报告中没有文件名、路径和患者，只有编号；对照表另写在 report_key.csv"),
    ("--batch-size", INT, "多张图像时一次前向的图像数（默认：CPU 至多 8，GPU 至多 32）"),
    ("--num-workers", INT, "多张图像时读取图像的进程数（默认：核数的一半，至多 4；不足 4 核时为 0）"),
    ("--no-text-cache", SWITCH, "不使用文本特征缓存"),
    ("--cpu", SWITCH, "强制使用 CPU（默认：有 CUDA 用 CUDA，其次 Apple MPS，否则 CPU）"),
    ("--help", {"action": "help"}, "显示本帮助后退出"),
)
EITHER = (
    ("--class-texts", "--class-texts-file"),
    ("--target-text-idx", "--all-texts", "--target"),
    ("--target-layer", "--layers"),
    ("--contrast", "--subtract-others"),
    ("--overlay-only", "--no-overlay"),
    ("--report", "--no-report"),
)


def build_parser() -> ChineseArgumentParser:
    """The parser of the command line, in the language of now: every flag, with its default."""
    parser = ChineseArgumentParser(
        prog="clip_gradcam_visualization.py",
        description=_help("用 Grad-CAM 显示图像中哪些区域与一段文本最相关（CLIP 图像-文本相似度的热力图）。"),
        epilog=_help(
            "例：python clip_gradcam_visualization.py --model-path m.pth --image-path a.jpg --class-texts 正常 异常"
        ),
        add_help=False,
        allow_abbrev=False,
    )
    group = parser.add_argument_group(_help("参数"))
    either = {}  # one of each
    for flags in EITHER:
        either.update(dict.fromkeys(flags, group.add_mutually_exclusive_group()))
    for flag, options, text in FLAGS:
        names = ("-h", flag) if flag == "--help" else (flag,)
        either.get(flag, group).add_argument(*names, **options, help=_help(text))
    return parser


def _help(text: str | Message) -> str:
    """A text of the help in the language of now."""
    return str(as_message(text))


def check_arguments(args) -> None:
    """Complain of what argparse cannot see: what is required depends on --list-layers."""
    for flag, options, _ in FLAGS:
        if options.get("metavar") in ("PATH", "NAME"):
            check_written(flag, getattr(args, flag[2:].replace("-", "_")))
    required = {} if args.join else {"--model-path": args.model_path}
    if not (args.list_layers or args.join):
        required["--image-path 或 --cases"] = args.image_path or args.cases
        required["--class-texts 或 --class-texts-file"] = args.class_texts or args.class_texts_file
    missing = [Message(flag) for flag, value in required.items() if not value]
    if missing:
        raise InputError("缺少必需的参数：{}（--help 显示用法）", Joined("、", missing))
    if args.image_encoder is not None and args.image_encoder not in OWN_ENCODERS:
        raise InputError("未知的图像编码器 {!r}；{}", args.image_encoder, encoders_hint(args.image_encoder))
    for flag, value, least, most in (
        ("--img-size", args.img_size, 16, 4096),
        ("--embed-dim", args.embed_dim, 1, 65536),
        ("--batch-size", args.batch_size, 1, 1024),
        ("--num-workers", args.num_workers, 0, 256),
        ("--dpi", args.dpi, *DENSITIES),
    ):
        check_at_least(flag, value, least)
        check_at_most(flag, value, most)
    if args.output_name is not None:
        check_output_name(args.output_name, args.figure_format)
    parse_grey_range(args.grey_range)
    colours_of(args)
    if not 0 <= args.tolerance <= GRID:
        raise InputError("--tolerance 应在 0 到 {} 之间（224×224 的像素），收到 {}", GRID, args.tolerance)
    for flag, value in (("--split", args.split), ("--target label", args.target == "label")):
        if value and not args.cases:
            raise InputError("{} 需要病例列表 --cases", flag)
    if args.panels and (args.no_figure or args.overlay_only):
        raise InputError("--panels 需要可视化图，不能与 --no-figure 或 --overlay-only 一起使用")
    if args.anonymous and args.report is False:
        raise InputError("--anonymous 与 --no-report 只能二选一：它说的是报告")
    if args.no_overlay and args.overlay_format:
        raise InputError("--no-overlay 与 --overlay-format 只能二选一：后者说的是叠加图像")
    if args.overlay_only and args.save_heatmap:
        raise InputError("--overlay-only 与 --save-heatmap 只能二选一；只是不要可视化图请用 --no-figure")


def question_of(args) -> Question:
    """The texts, and which of them are explained; InputError where they do not go together."""
    names, texts = names_and_texts(
        read_class_texts(args.class_texts_file) if args.class_texts_file else args.class_texts,
        args.text_template or (),
    )
    indices = args.target_text_idx and text_indices(args.target_text_idx, names, "--target-text-idx")
    if args.contrast and len(names) < 2:
        raise InputError("--contrast 至少需要两个类别文本")
    choices = args.method, args.similarity, args.subtract_others or None, args.faithfulness, args.img_size, args.words
    return question_about(names, texts, "all" if args.all_texts else indices, args.contrast, *choices)


def question_about(names: list[str], texts: list[ClassText], target_text_idx, contrast: bool, *choices) -> Question:
    """The Question of `target_texts`' targets and of `choices`, its further fields; InputError where they clash."""
    targets, gamma = target_texts(target_text_idx, len(names)), CONTRAST_GAMMA if contrast else 0.0
    question = Question(names, texts, targets, gamma, *choices)
    check_question(question)
    if alike := same_texts(texts):
        one, other = (names[index] for index in alike)
        warnings.warn(InputWarning("类别 {} 和 {} 的描述相同：模型不能区分它们", one, other), stacklevel=3)
    return question


def output_choice(args) -> OutputChoice:
    has_figure = not (args.no_figure or args.overlay_only)
    return OutputChoice(
        has_figure,
        args.save_heatmap,
        args.lang or LANGUAGES[0],
        args.overlay_format,
        args.dpi or FIGURE_DPI,
        args.panels,
        args.figure_format,
        not args.no_overlay,
    )


def colours_of(args) -> Colours:
    """What the flags have heatmaps look like; InputError where they name no colours."""
    return choose_colours(args.colormap, args.blend, args.alpha)


# ---------------------------------------------------------------------------------------------
# 2. Loading


def load_from_arguments(args, texts: list[ClassText] | None = None, local_rank: int = 0):
    """The model of --model-path; with `texts` on its device, with their features and without its text tower."""
    return load_clip_checkpoint(
        args.model_path,
        args.image_encoder,
        args.text_encoder,
        args.embed_dim,
        args.img_size,
        text_tower=texts is not None,
        texts=texts,
        device="cpu" if texts is None else choose_device(args.cpu, local_rank),
        use_cache=not args.no_text_cache,
        mean=args.mean,
        std=args.std,
        download=args.download,
        words=args.words,
    )


def living_clip(model, processor=None, needs_tokenizer: bool = True):
    """A model that is already in memory as one that can be explained; of ours, or already so, it comes back as it is.

        clip = living_clip(CLIPModel.from_pretrained(folder), CLIPProcessor.from_pretrained(folder))
        clip = living_clip(model, (preprocess_val, tokenizer))           # open_clip, openai/CLIP

    `model`: a CLIP of transformers (CLIP, Chinese-CLIP, SigLIP and 2, AltCLIP, MetaCLIP 2 and what has their
    structure), open_clip or openai/CLIP, also inside DataParallel, `torch.compile`, PEFT and the like; it is left as it
    was: modules, weights, device, precision, modes. `processor`: what such a model does not carry itself, a processor
    of transformers or a pair (image processor, tokenizer). What is left out of it is read, for transformers, from the
    local folder that the model was loaded from; for open_clip the preprocessing off the image tower.

    Modules of transformers are shared: what comes back follows their training. open_clip's image tower comes back with
    the weights as they are now: after a step of training it is an InputError to use it. InputError too where neither
    says how images are prepared, where the tokenizer is missing and `needs_tokenizer`, for another structure, and where
    our towers do not compute what the library's own do.
    """
    network = library_clip(model)
    if network is None:
        if processor is not None:
            name = type(clip_of(model)).__name__
            raise InputError("processor 只用于 transformers、open_clip 和 openai/CLIP 的模型；{} 不需要它", name)
        return model
    with undisturbed(network):
        return build_living(network, processor, needs_tokenizer)


# ---------------------------------------------------------------------------------------------
# 3. CLIPGradCAM: from images to the maps of texts at a layer


class CLIPGradCAM:
    """Grad-CAM of the cosine similarity between an image and a text, or another of METHODS.

    L = [ sum_k <g_k> A_k ]+ with A the target layer's activations, g = d cos(image, text) / dA and <.> the
    spatial mean (Selvaraju et al. 2017, arXiv 1610.02391). The similarity itself is explained, never a
    softmax over texts: a softmax's gradient is zero with one text and shrinks with confidence.

    `model` needs an `image_encoder`, its own or that of what it wraps (see `clip_of`); `target_layer` is one of its
    modules or their dotted paths, or several whose maps are fused; for LeGrad blocks. None: the users' guide's, for
    LeGrad the last blocks. `similarity`: "cosine", or "dot", the product of the unit text vector with the image's
    embedding before its normalisation. `others`: how the other texts are taken off, None for not at all. With
    `use_cuda` the model moves to CUDA where there is one. Usable as a context manager; no hook outlives a call. One
    model may be explained in several threads; they take turns.
    """

    def __init__(
        self,
        model,
        target_layer,
        use_cuda: bool = True,
        method: str = "gradcam",
        similarity: str = "cosine",
        others: Others | None = None,
    ):
        model = clip_of(model)
        self.model = model.to("cuda") if use_cuda and torch.cuda.is_available() else model
        self.method = check_method(method)
        self.similarity = check_similarity(similarity)
        self.others = others if METHODS[method].knows_text else None
        needs = METHODS[method].needs
        needs.check_gradients(model.image_encoder, method)
        layers = target_layer if isinstance(target_layer, (list, tuple)) else [target_layer]
        self.layers = check_layers(model, [layer for layer in layers if layer is not None])
        if not self.layers and not reads_attention(method):
            self.layers = [get_target_layer_for_clip(model)]

    @property
    def target_layer(self) -> torch.nn.Module:
        return self.layers[0]

    @property
    def modules(self) -> list[torch.nn.Module]:
        """What the maps come from: the layers, or the blocks whose attention is captured."""
        return METHODS[self.method].needs.modules(self.model.image_encoder, self.method, self.layers)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        return False

    def __call__(self, images, text_features, target_text_idx=None) -> np.ndarray:
        """Images [B, 3, H, W] (or [3, H, W]), text features [K, D] -> float32 [B, H, W] in [0, 1]; [H, W] if B is 1.

        `target_text_idx`: the text explained, one int for all images or one per image; None takes the most
        similar text of each image. A flat map comes back as zeros, with a warning that says why. This is for callers
        from Python; the command goes through `text_maps`, as it draws the maps of all texts.
        """
        images = model_input(images)
        text_maps = self.text_maps(images, text_features, target_text_idx)
        heatmaps = []
        for maps, peaks in zip(text_maps.maps, text_maps.gradient_peaks):
            flaw = diagnose_flat_map(self.model, maps[0], peaks[0], self.others is not None)
            if flaw:
                warnings.warn(InputWarning(flaw), stacklevel=2)
            heatmaps.append(to_heatmap(maps[0], images.shape[-2:]))
        return heatmaps[0] if len(heatmaps) == 1 else np.stack(heatmaps)

    def text_maps(self, images, text_features, target_text_idx=None, contrast: float = 0.0) -> TextMaps:
        """One forward pass to the maps of one or several texts per image, before ReLU, at the layer's size.

        `target_text_idx` as in the call, or [B, T]. `contrast`: gamma of `contrastive_directions`. Score-CAM alone
        runs the model again, once per channel.
        """
        return self.maps_of_methods([self.method], images, text_features, target_text_idx, contrast)[0]

    def maps_of_methods(
        self, methods, images, text_features, target_text_idx=None, contrast: float = 0.0, compare: bool = False
    ) -> list[TextMaps]:
        """`text_maps` of several methods that look at the same layers, from one forward pass and the same gradients.

        `compare`: with the maps of every text at the last layer, where they cost little.
        """
        tower, needs = self.model.image_encoder, METHODS[self.method].needs
        with undisturbed(tower):
            images = self._to_model(model_input(images))
            images = images.clone() if images.is_inference() else images  # autograd saves no inference tensor
            with through(tower, images), needs.captured(tower, self.method, self.modules) as captured:
                embeddings = self._embed(images)
            torch.set_grad_enabled(False)  # the hooks have turned it on
            with through(tower, images):
                check_embeddings(tower, images, embeddings)
            texts, units = self._unit_texts(text_features, embeddings), self._unit(embeddings)
            similarities = units @ texts.T  # [B, K]
            targets = target_indices(target_text_idx, similarities)
            forward = ForwardPass(
                tower, images, captured, embeddings, lambda masked: self._embed(self._to_model(masked))
            )
            make = partial(self._make_maps, texts=texts, similarities=similarities, contrast=contrast)
            if compare:
                by_method, compared = self._compared_maps(make, methods, forward, targets, len(texts))
            else:
                by_method, compared = make(methods, forward, targets=targets), [None] * len(methods)
        return [TextMaps(*maps, similarities, targets, units, of_all) for maps, of_all in zip(by_method, compared)]

    @staticmethod
    def _compared_maps(make, methods, forward, targets, count) -> tuple[list[Maps], list[torch.Tensor]]:
        """Of each method, Maps of the targets [B, T], and maps [B, K, h', w'] by which all K texts are compared."""
        comparing = [METHODS[method].compared_by or method for method in methods]
        all_texts = torch.arange(count, device=targets.device).expand(len(targets), -1)
        last = METHODS[methods[0]].needs.last_of(forward)
        of_all_texts = make(comparing, last, targets=all_texts)
        if last is forward and comparing == methods:  # the explained texts are some of all
            rows = torch.arange(len(targets), device=targets.device)[:, None]
            by_method = [Maps(maps[rows, targets], peaks[rows, targets]) for maps, peaks in of_all_texts]
        else:
            by_method = make(methods, forward, targets=targets)
        return by_method, [maps for maps, _ in of_all_texts]

    def _make_maps(self, methods, forward, texts, similarities, targets, contrast) -> list[Maps]:
        """Of each method, maps of the targets [B, T]; InputError where one is not finite."""
        scores = TargetScores(self._scores, self._directions(texts, similarities, targets, contrast))
        rows = [METHODS[method] for method in methods]
        try:
            by_needs = {
                needs: iter(needs.maps([row.formula for row in rows if row.needs is needs], forward, scores))
                for needs in dict.fromkeys(row.needs for row in rows)
            }
            by_method = [next(by_needs[row.needs]) for row in rows]
        except torch.linalg.LinAlgError:  # Eigen-CAM of activations that are not finite
            by_method = [Maps(*[forward.images.new_tensor(torch.nan)] * 2)]
        if not all(torch.isfinite(maps).all() for maps, _ in by_method):
            raise InputError("热力图中出现 NaN 或无穷大：{}", why_not_finite(forward.tower, forward.images))
        if not (self.others and self.others.of_maps):
            return by_method
        share = self.others.share
        return [Maps(take_off(*maps.chunk(2, 1), share), peaks.chunk(2, 1)[0]) for maps, peaks in by_method]

    def _directions(self, texts, similarities, targets, contrast) -> torch.Tensor:
        """What is explained of each image [B, T, D]; followed by what is taken off its maps, [B, 2 T, D]."""
        own = (contrastive_directions(texts, contrast) if contrast else texts)[targets]
        if self.others is None:
            return own
        others = others_directions(texts, logits_of(self.model, similarities), targets)
        return torch.cat([own, others], 1) if self.others.of_maps else own - self.others.share * others

    def score(self, images, text_features, contrast: float = 0.0):
        """Cosines of images [n, 3, h, w] and K texts -> [n, K] float32, whatever is explained, without a heatmap."""
        with undisturbed(self.model.image_encoder):
            embeddings = self.model.image_encoder(self._to_model(model_input(images)))
            texts = self._unit_texts(text_features, embeddings)
            return self._unit(embeddings) @ (contrastive_directions(texts, contrast) if contrast else texts).T

    def _to_model(self, images):
        """Images on the model's device, in its precision and, where that is quicker, its order of memory."""
        images = images.detach().to(*placement(self.model.image_encoder))
        if len(images) > 1 and images.device.type == "cpu":  # a quarter faster there; one image alone is not
            return images.contiguous(memory_format=torch.channels_last)
        return images

    def _unit_texts(self, text_features, embeddings):
        """Text features [K, D] as unit vectors, where the embeddings [B, D] are; InputError where they do not fit."""
        features = check_text_features(text_features, width=embeddings.shape[-1]).detach()
        return self._unit(features.clone().to(embeddings.device))

    @staticmethod
    def _unit(vectors):
        return F.normalize(vectors.float(), dim=-1)

    def _embed(self, images):
        """[B, 3, H, W] -> embeddings [B, D], for the dot product those before the normalisation."""
        tower = self.model.image_encoder
        if self.similarity == "cosine":
            return tower(images)
        if not hasattr(tower, "embed"):
            raise InputError("该图像编码器不给出归一化之前的嵌入（没有 embed 方法），不能用点积解释")
        return tower.embed(images)

    def _scores(self, embeddings, directions):
        """Embeddings [n, D], directions [n, T, D] -> what is explained [n, T] float32."""
        embeddings = self._unit(embeddings) if self.similarity == "cosine" else embeddings.float()
        return torch.einsum("nd,ntd->nt", embeddings, directions)


# ---------------------------------------------------------------------------------------------
# 4. One image


class Explainer:
    """A model, its settings and the texts: images in, the maps of the explained texts out.

    Settings that look at the same layers, of the same similarity, share one forward pass and its gradients.
    """

    def __init__(
        self,
        model,
        text_features,
        question: Question,
        target_layer=None,
        encoder: str | None = None,
        colours: Colours = DEFAULT_COLOURS,
        class_words: ClassWords | None = None,
    ):
        self.model, self.question, self.colours = clip_of(model), question, colours
        self.text_features = None if text_features is None else check_text_features(text_features, len(question.texts))
        self.encoder = encoder or getattr(self.model, "image_encoder_name", type(self.model).__name__)
        layers = target_layer if isinstance(target_layer, (list, tuple)) else [target_layer]
        self.layers = check_layers(self.model, [layer for layer in layers if layer is not None])
        self.settings = settings_of(self.model, self.encoder, question, self.layers)
        self.cams = [CLIPGradCAM(self.model, s.layers, False, s.method, s.similarity, s.others) for s in self.settings]
        self.groups = self._groups()
        self.layer_names = [layers_name(self.model, cam.modules) for cam in self.cams]
        if question.words and class_words is None:
            class_words = ClassWords(getattr(self.model, "text_encoder", None), question.texts)
        self.class_words = class_words

    def twin(self) -> Explainer:
        """The same over the same weights, with modules of its own: hooks of two threads do not meet."""
        text_tower = getattr(self.model, "text_encoder", None)  # what its words are, all twins share
        shared = {id(part): part for part in (*self.model.parameters(), *self.model.buffers(), text_tower)}
        model, layers = copy.deepcopy([self.model, self.layers], shared)
        own = self.question, layers, self.encoder, self.colours, self.class_words
        return Explainer(model, self.text_features, *own)

    def __call__(self, images: torch.Tensor, targets: Sequence[Sequence[int]] | None = None) -> list[list[ImageMaps]]:
        """Model input [B, 3, h, w] -> for each image the maps of each setting.

        `targets`: of each image the texts that are explained, one or more; None for the question's.
        """
        if targets is None:
            targets = self.question.targets and [self.question.targets] * len(images)
        maps_by_setting = {}
        for members in self.groups:
            cams = [self.cams[member] for member in members]
            maps_by_setting.update(zip(members, self._image_maps(cams, images, targets)))
        maps_by_image = [list(maps) for maps in zip(*(maps_by_setting[i] for i in range(len(self.cams))))]
        if self.class_words:
            maps_by_image = self._with_words(maps_by_image)
        if self.question.faithfulness:
            return [self._measured(image[None], maps) for image, maps in zip(images, maps_by_image)]
        return maps_by_image

    def _groups(self) -> list[list[int]]:
        """The settings' indices by what they need of a pass: those of one group share it."""
        groups = {}
        for index, cam in enumerate(self.cams):
            kind = cam.method if reads_attention(cam.method) else "layers"
            key = kind, tuple(map(id, cam.modules)), cam.similarity, cam.others
            groups.setdefault(key, []).append(index)
        return list(groups.values())

    def _image_maps(self, cams: Sequence[CLIPGradCAM], images, targets) -> list[list[ImageMaps]]:
        """For each of the settings of a group, the maps of each image."""
        methods = [cam.method for cam in cams]
        indices = None if targets is None else torch.tensor(rectangular(targets), device="cpu")
        by_method = cams[0].maps_of_methods(
            methods, images, self.text_features, indices, self.question.contrast, compare=True
        )
        return [self._by_image(text_maps, targets) for text_maps in by_method]

    def _by_image(self, text_maps: TextMaps, targets) -> list[ImageMaps]:
        probabilities = probabilities_of(self.model, text_maps.similarities)
        maps = [ImageMaps(*image) for image in zip(*(part.cpu().numpy() for part in (*text_maps, probabilities)))]
        return maps if targets is None else [of_image.first(len(own)) for of_image, own in zip(maps, targets)]

    def _with_words(self, maps_by_image: list[list[ImageMaps]]) -> list[list[ImageMaps]]:
        """The maps of each image, with what the words of its explained texts add: the same for all settings."""
        texts = CLIPGradCAM._unit(self.text_features.detach().cpu())
        targets = [maps[0].targets.tolist() for maps in maps_by_image]
        words = {}  # by (image, text)
        for target in sorted({*itertools.chain(*targets)}):
            images = [image for image, of_image in enumerate(targets) if target in of_image]
            embeddings = torch.from_numpy(np.stack([maps_by_image[image][0].embedding for image in images]))
            directions = words_directions(embeddings, texts, target, self.question.contrast)
            weighed = self.class_words.weighed(target, directions, texts[target])
            words.update(zip(((image, target) for image in images), weighed))
        return [
            [of_setting._replace(words=[words[image, target] for target in targets[image]]) for of_setting in maps]
            for image, maps in enumerate(maps_by_image)
        ]

    def _measured(self, image, maps: list[ImageMaps]) -> list[ImageMaps]:
        """The maps of one image, each explained text's tested by deletion and insertion of its similarity."""
        cam, targets = self.cams[0], maps[0].targets.tolist()

        def score(images):
            return cam.score(images, self.text_features, self.question.contrast)

        seed = zlib.crc32(image.cpu().numpy().tobytes())  # each image has random maps of its own, the same each time
        tested = {}
        for grid in dict.fromkeys(of_setting.maps.shape[1:] for of_setting in maps):
            alike = [index for index, of_setting in enumerate(maps) if of_setting.maps.shape[1:] == grid]
            raw_maps = np.concatenate([maps[index].maps for index in alike])
            measured = measure_faithfulness(score, image, raw_maps, targets * len(alike), seed=seed)
            tested.update(zip(alike, zip(*[iter(measured)] * len(targets))))
        return [of_setting._replace(faithfulness=list(tested[index])) for index, of_setting in enumerate(maps)]

    def results(self, pixels: Mapping[int | None, np.ndarray]) -> Iterator[Results]:
        """The results of images uint8 [H, W, 3] by their places in a list, in batches through the model."""
        prepare = preprocessing_of(self.model, self.question.img_size)
        on_cpu = placement(self.model.image_encoder)[0].type == "cpu"
        size = most_at_once(on_cpu) if prepare.fixed_size else 1
        places = list(pixels)
        for start in range(0, len(places), size):
            batch = {place: prepare(pixels[place]) for place in places[start : start + size]}
            for place, maps in zip(batch, self._maps_of_batch(batch)):
                yield self.result(pixels[place], maps)

    def _maps_of_batch(self, batch: Mapping[int | None, torch.Tensor]) -> list[list[ImageMaps]]:
        """The maps of each model input [1, 3, h, w]; one at a time where they fail together.

        An InputError names the image that it is about; none where it is about each of several: it is the model's.
        """
        if len(batch) > 1:
            with contextlib.suppress(InputError, MemoryError, RuntimeError):
                return self(torch.cat(list(batch.values())))
        maps, errors = [], {}
        for place, image in batch.items():
            try:
                maps += self(image)
            except InputError as error:
                errors[place] = error
        for place, error in errors.items():
            with naming_image(None if len(errors) == len(batch) > 1 else place):
                raise error
        return maps

    def result(self, pixels: np.ndarray, maps: list[ImageMaps], name: str | None = None) -> Results:
        """Everything that figures, files and tables say of one image; pixels uint8 [H, W, 3], `name` of its file."""
        of_settings = zip(maps, self.settings, self.layer_names)
        return Results(self._result(pixels, *of_setting)._replace(name=name) for of_setting in of_settings)

    def _result(self, pixels, image: ImageMaps, setting: Setting, layer: str) -> ImageResult:
        subtracts = setting.others is not None
        flaws = [diagnose_flat_map(self.model, *of_map, subtracts) for of_map in zip(image.maps, image.gradient_peaks)]
        return ImageResult(
            pixels=pixels,
            maps=image.maps,
            question=self.question._replace(
                method=setting.method, similarity=setting.similarity, subtract_others=subtracts
            ),
            probabilities=image.probabilities,
            similarities=image.similarities,
            targets=image.targets.tolist(),
            source=(self.encoder, layer, *image.maps.shape[1:]),
            flaws=flaws,
            specificities=[text_specificity(image.compared, target) for target in image.targets],
            cautions=self._cautions(pixels),
            region=self._region(pixels.shape[:2], image.maps.shape[1:]),
            faithfulness=image.faithfulness,
            words=image.words,
            independent=getattr(self.model, "independent_probabilities", False),
            fused_layers=setting.fused_layers,
            subtracted=setting.subtracted,
            is_default=setting.is_default,
            tells_presence=tells_presence(self.encoder, setting),
            colours=self.colours,
        )

    def _cautions(self, pixels: np.ndarray) -> list[Message]:
        """What the reader must know of the model and of the picture, whatever is asked of them."""
        cautions = (describe_assumed_size(self.model, self.question.img_size), describe_flat_picture(pixels))
        return [*filter(None, cautions), *getattr(self.model, "cautions", ())]

    def _region(self, size, grid) -> Region | None:
        """The part of an image that a map of this grid lies on, None for the whole image."""
        prepare = preprocessing_of(self.model, self.question.img_size)
        region = prepare.region(*size)
        patch = getattr(self.model.image_encoder, "patch_size", None)
        if patch is not None:  # what is left over of the input on the right and below is no patch's
            height, width = prepare.input_size(*size)
            region = region.corner(min(1.0, grid[0] * patch / height), min(1.0, grid[1] * patch / width))
        return None if region.is_whole(*size) else region


@contextlib.contextmanager
def naming_image(place: int | None) -> Iterator[None]:
    """While it lasts an InputError says which image of a list it is about; None: there is no list."""
    try:
        yield
    except InputError as error:
        if place is None:
            raise
        raise InputError("image[{}]：{}", place, reason(error)) from error


def pixels_of(images: Mapping[int | None, object], grey_range) -> dict[int | None, np.ndarray]:
    """uint8 [H, W, 3] of each image of a list, by its place there; InputError names the place."""
    pixels = {}
    for place, image in images.items():
        with naming_image(place):
            pixels[place] = to_pixels(image, grey_range)
    return pixels


def class_text_features(model, texts: list[ClassText]) -> torch.Tensor:
    """The texts' features [K, D] by the model's own text tower, whatever surrounds the call."""
    tower = getattr(model, "text_encoder", None)
    if tower is None:
        raise InputError("该模型没有文本编码器：请给出 text_features，或用 load_clip_checkpoint 载入")
    with undisturbed(tower):
        features = embed_texts(model, texts)
    if not torch.isfinite(features).all():
        raise InputError("文本编码器给出 NaN 或无穷大：检查点的文本权重已损坏，或训练时发散；请换一个检查点")
    return features


def explain(
    model,
    image,
    class_texts: Sequence[ClassText] | Mapping[str, ClassText],
    target_layer=None,
    target_text_idx: int | Sequence[int] | str | None = None,
    img_size: int | None = None,
    use_cuda: bool = True,
    image_encoder_name: str | None = None,
    contrast: bool = False,
    method: str | None = None,
    similarity: str | None = None,
    faithfulness: bool = False,
    text_features: torch.Tensor | None = None,
    grey_range: str | Sequence | None = None,
    subtract_others: bool | None = None,
    lang: str = LANGUAGES[0],
    blend: str | None = None,
    colormap: str | None = None,
    alpha: float | None = None,
    text_templates: str | Sequence[str] = (),
    processor=None,
    words: bool = False,
) -> ImageResult | Results | list[ImageResult] | list[Results]:
    """Explain one image, or several, against K class texts; a result is frozen, and shows its figure in a notebook.

    `model`: of `load_clip_checkpoint`, or one in memory of transformers, open_clip or openai/CLIP, which stays as and
    where it is, with the `processor` that it does not carry itself (see `living_clip`).
    `image`: a path, a PIL image, or an array [H, W] or [H, W, 3] (see `to_pixels`); a list or tuple of them goes to the
    model in batches and gives the list of their results, each of which keeps its image's pixels. `class_texts`: a list,
    or a dict {short name: description}; in place of a description a list of several, which are averaged (see
    `embed_classes`); `text_templates`: each is put into each of them (see `names_and_texts`). `target_text_idx`: None
    explains the most similar text, several or "all" more than one. `target_layer`: a module or a dotted path, or a list
    of them to fuse; None for the encoder's own. `img_size` counts where the model names none, 224 where neither does.
    `method`, `similarity`: of METHODS and SIMILARITIES, None for the encoder's default; method "all" gives Results: the
    default's and one per method.
    `contrast`: what speaks for a text rather than for the others. `subtract_others`: whether the other texts are
    taken off (`others_directions`), None for the method's default. `faithfulness`: test each heatmap by deletion and
    insertion. `text_features` [K, D] spare embedding the texts again. `grey_range`: how more than 8 bits of grey become
    8 (see `parse_grey_range`). `lang`: what errors, warnings and the result's figure are in, "zh" or "en". `blend`,
    `colormap`, `alpha`: how it is drawn (see `choose_colours`). `words`: what each word of an explained text adds, by
    the model's own text tower (`result.words`, see `models.explain.words`). Raises InputError for what cannot be used,
    with an image's place in the list.
    """
    with speaking(check_language(lang)):
        living = living_clip(model, processor, needs_tokenizer=text_features is None or words)
        is_ours, model = living is model, clip_of(living)
        own_size = getattr(model, "img_size", None)
        if own_size and img_size not in (own_size, None):
            warnings.warn(
                InputWarning("img_size={} 与检查点不符，按检查点的 {} 处理", img_size, own_size), stacklevel=2
            )
        choices = method, similarity, subtract_others, faithfulness, img_size, words
        question = question_about(*names_and_texts(class_texts, text_templates), target_text_idx, contrast, *choices)
        colours = choose_colours(colormap, blend, alpha)
        is_list = isinstance(image, (list, tuple))
        images = dict(enumerate(image)) if is_list else {None: image}  # by their places in the list
        pixels = pixels_of(images, grey_range)
        if use_cuda and is_ours and torch.cuda.is_available():
            model.to("cuda")
        explainer = Explainer(model, text_features, question, target_layer, image_encoder_name, colours)
        if text_features is None:
            explainer.text_features = class_text_features(model, question.texts)
        answers = [
            Results(result._replace(lang=lang, name=file_name(one)) for result in results)
            for one, results in zip(images.values(), explainer.results(pixels))
        ]
        answers = answers if method == "all" else [results[0] for results in answers]
        return answers if is_list else answers[0]


def visualize_clip_gradcam(
    model,
    image_path: str | os.PathLike,
    class_texts: Sequence[ClassText] | Mapping[str, ClassText],
    target_layer=None,
    target_text_idx: int | Sequence[int] | str | None = None,
    img_size: int | None = None,
    save_path: str | os.PathLike | None = None,
    use_cuda: bool = True,
    image_encoder_name: str | None = None,
    contrast: bool = False,
    **options,
) -> np.ndarray:
    """Explain one image against the class texts; returns the overlay, float32 RGB [H, W, 3] in [0, 1].

    Everything as for `explain`, whose other `options` may follow. Several texts, or "all", give overlays [T, H, W, 3]
    that share one colour scale; method "all" the default's and one per method, each on its own. With `save_path` the
    figure and the overlays are written. InputError for a list of images, which are `explain`'s.
    """
    with speaking(check_language(options.get("lang", LANGUAGES[0]))):
        if isinstance(image_path, (list, tuple)):
            raise InputError("visualize_clip_gradcam 一次解释一张图像；多张图像请用 explain，再对每个结果用 save")
        answer = explain(
            model,
            image_path,
            class_texts,
            target_layer=target_layer,
            target_text_idx=target_text_idx,
            img_size=img_size,
            use_cuda=use_cuda,
            image_encoder_name=image_encoder_name,
            contrast=contrast,
            **options,
        )
        results = answer if isinstance(answer, Results) else Results([answer])
        for message in results.messages():
            warnings.warn(InputWarning(message), stacklevel=2)
        if save_path is not None:
            save_results(results, save_path)
        if len(results) == 1 and np.ndim(target_text_idx) == 0 and not isinstance(target_text_idx, str):
            return results[0].overlay
        return np.stack([overlay for result in results for overlay in result.overlays()])


def explainer_of(args, model, question: Question) -> Explainer:
    """The Explainer of the flags."""
    layers = args.layers or args.target_layer
    return Explainer(model, model.class_text_features, question, layers, colours=colours_of(args))


def run_one(args, question: Question) -> None:
    """One image to its files: the model gives maps at a layer; encoding the files makes heatmaps of them and draws."""
    image_path = args.image_path[0]
    choice = output_choice(args)
    if choice.is_nothing:
        raise InputError("没有要写的文件：单张图像请去掉 --no-figure 或 --no-overlay，或加 --save-heatmap 或 --report")
    name = f"clip_gradcam_{Path(image_path).stem}.{choice.figure_format or FIGURE_FORMATS[0]}"
    save_path = Path(args.output_dir) / (args.output_name or name)
    check_output_folder(save_path.parent)
    pixels = read_image(image_path, parse_grey_range(args.grey_range))
    model = load_from_arguments(args, question.texts)
    explainer = explainer_of(args, model, question)
    (maps,) = explainer(preprocessing_of(model, args.img_size)(pixels))
    results = explainer.result(pixels, maps, file_name(image_path))
    for message in results.messages(current_language()):
        warnings.warn(InputWarning(message), stacklevel=1)
    files = encode_outputs(results, save_path, choice)
    write_files(files.contents)
    say(*summary(results, files))


# ---------------------------------------------------------------------------------------------
# 5. Many images


def run_many(args, question: Question) -> int:
    """Images of a list to files and tables, alone or as one of torchrun's ranks; returns the exit code."""
    savings.go_on_for_long()
    ranks, state, threads = Ranks(), RunState(args.output_dir, parse_shard(args.shard)), torch.get_num_threads()
    one_thread()
    with contextlib.ExitStack() as stack:
        if ranks.is_first:
            check_output_folder(state.folder)
            root, images = planned_images(args, question)
        else:
            warnings.simplefilter("ignore", InputWarning)  # the first rank says it
        model = load_from_arguments(args, question.texts, ranks.local_rank)
        explainer = explainer_of(args, model, question)
        run_columns = {"checkpoint": fingerprint(args.model_path), "packages": package_versions()}
        on_cpu = explainer.text_features.device.type == "cpu"
        chosen = {"batch": args.batch_size, "num_workers": args.num_workers}
        chunks = partial(chunk_size, on_cpu=on_cpu, torch_threads=threads, ranks=ranks, **chosen)
        if ranks.is_first:
            stack.enter_context(state.lock())
            settings = settings_of_run(explainer, args.target == "label", output_choice(args), run_columns)
            settings |= {"grey_range": str(parse_grey_range(args.grey_range)), "root": root}
            settings |= {"text_encoder": text_encoder_fingerprint(args.text_encoder)}
            resumes = args.resume or ranks.attempt > 0
            earlier = state.read_settings() if resumes else None
            settings |= report_choice(args.report, args.anonymous, len(images), earlier)._asdict()
            state.begin(settings, images, resumes, chunks(len(images)).batch)
            del images  # all ranks read them back
        ranks.announce("planned")
        ranks.wait_for("planned", [0])
        plan = state.plan(len(question.names))
        dataset = ImageDataset(preprocessing_of(model, args.img_size), parse_grey_range(args.grey_range))
        cases = CaseChoice(args.target == "label", args.annotations, args.tolerance, args.dpi or FIGURE_DPI)
        report = ReportChoice.of(state.read_settings())
        run = Run(explainer, dataset, state, output_choice(args), run_columns, cases, report)
        return finish_run(run, plan, chunks(len(plan)), ranks)


def planned_images(args, question: Question) -> Plan:
    """The images of the flags, in order, with what a list of cases says of each."""
    sources = Sources(args.image_path, args.cases, args.split, args.annotations)
    plan = plan_images(sources, args.output_dir, question.names, args.target == "label")
    several = next((image for image in plan.images if len(image.labels) > 1), None)
    if args.target == "label" and question.method == "all" and several:
        raise InputError("--method all 一次只比较一个文本，而 {} 有 {} 个标签", several.image, len(several.labels))
    return plan


# ---------------------------------------------------------------------------------------------
# 6. main


def print_layers(model) -> None:
    """Each layer that gives a spatial map, its size, and a mark at the default; at the guide's where that has none."""
    fused = default_layers(model, model.image_encoder_name)
    marked = [layer_name(model, layer) for layer in fused or [get_target_layer_for_clip(model)]]
    mark = Message("  （默认）") if fused else Message("  （--method gradcam 的目标层）")
    img_size = getattr(model, "img_size", None) or DEFAULT_IMG_SIZE
    say(Message("{} 可作为目标层的层（输入 {}×{}；通道×行×列）：", model.image_encoder_name, img_size, img_size))
    for name, (channels, rows, columns) in list_spatial_layers(model, img_size):
        if rows * columns > 1:
            say(f"  {name}  {channels}×{rows}×{columns}" + str(mark if name in marked else ""))


def is_one_image(args) -> bool:
    """Whether the flags ask for the files of one image, neither tables nor a report."""
    asks_for_tables = args.cases or args.annotations or args.resume or args.shard or "RANK" in os.environ
    return not (asks_for_tables or args.report or args.anonymous) and is_single(args.image_path)


def run(args) -> int:
    """One command, whole; returns the exit code. Cheap checks come first: a mistake is answered before the model."""
    check_arguments(args)
    if args.list_layers:
        print_layers(load_from_arguments(args))
        return 0
    if args.join:
        return join(args.output_dir, args.tolerance, args.lang, args.dpi, args.report, args.anonymous)
    question = question_of(args)
    if is_one_image(args):
        run_one(args, question)
        return 0
    if args.output_name:
        raise InputError("--output-name 只用于单张图像；多张图像的输出名由各自的路径决定")
    return run_many(args, question)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code.

    0; 1 where images of many are missing from the results; 2 where nothing could start, after one line on standard
    error, `错误: ...` or `error: ...`; 130 after Ctrl-C. An exception that nobody foresaw is one line too, a traceback
    where DEBUG is set.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="spelled")
    with speaking(language_of_console(sys.argv[1:] if argv is None else argv)):
        return command(argv)


def language_of_console(argv: Sequence[str]) -> str:
    """What the command is asked to speak; English where the console has no Chinese letters.

    Before the parser, whose help and errors are in it. Figures and tables are in the language of --lang all the same.
    """
    if not can_show_chinese(sys.stdout, sys.stderr):
        return "en"
    flags = ((*flag.partition("="), after) for flag, after in zip(argv, [*argv[1:], ""]))
    values = [value if equals else after for name, equals, value, after in flags if name == "--lang"]
    return next((value for value in reversed(values) if value in LANGUAGES), LANGUAGES[0])  # as argparse: the last


def command(argv: Sequence[str] | None) -> int:
    """Run the command line in the language of now; returns the exit code."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what libraries say to developers
            warnings.simplefilter("always", InputWarning)
            warnings.showwarning = lambda message, *_: say(Message("警告: {}", message), to=sys.stderr)
            exit_code = run(build_parser().parse_args(argv))
            sys.stdout.flush()  # here, where a closed pipe is expected
            return exit_code
    except InputError as error:
        print_error(error)
        return 2
    except BrokenPipeError:  # the reader of our output, `head` say, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        say(Message("已中断；多张图像时加 --resume 接着做"), to=sys.stderr)
        return 130
    except Exception as error:
        if os.environ.get(DEBUG):
            raise
        print_error(unforeseen(error))
        return 2
    return 0


if __name__ == "__main__":
    savings.start()
    savings.end(main())
