"""Libraries that take long to import, each imported when the first name of it is asked for.

    from .heavy import torch      # imports nothing
    torch.zeros(3)                # imports torch, as it would have at the top of the file

Files that the script imports take them from here: a typo in a flag is answered in a tenth of a second, not after torch,
and a warm command never imports what it does not use. Files that define networks, which nothing imports before a model
is loaded, import torch itself.
"""

import sys
from types import ModuleType

from .errors import InputError, reason


class HeavyModule(ModuleType):
    """Stands for the module of its name. InputError with `advice`, if there is some, where it cannot be imported."""

    def __init__(self, name: str, advice: str | None = None):
        super().__init__(name)
        self._advice = advice

    def __getattr__(self, name):
        try:
            __import__(self.__name__)
        except ImportError as error:
            if self._advice is None:
                raise
            raise InputError(self._advice, reason(error)) from error
        return getattr(sys.modules[self.__name__], name)


torch, functional = HeavyModule("torch"), HeavyModule("torch.nn.functional")
torchvision, transformers = HeavyModule("torchvision"), HeavyModule("transformers")
huggingface_hub, safetensors = HeavyModule("huggingface_hub"), HeavyModule("safetensors")
tqdm, Image, ImageOps = HeavyModule("tqdm"), HeavyModule("PIL.Image"), HeavyModule("PIL.ImageOps")
ImageDraw, ImageFont = HeavyModule("PIL.ImageDraw"), HeavyModule("PIL.ImageFont")
peft = HeavyModule(
    "peft",
    "无法载入 peft（{}），模型旁的适配器（PEFT、LoRA）没有它不能合并；请安装：pip install peft，或在别处先合并："
    "model.merge_and_unload() 之后用 save_pretrained 另存，再读另存的文件夹",
)
cv2 = HeavyModule(
    "cv2",
    "无法载入 OpenCV（{}）；若缺少 libGL，请执行 pip install opencv-python-headless，"
    "或 apt-get install libgl1 libglib2.0-0",
)
