"""Names of WordNet ids, the labels of ImageNet.

They are first lemmas, except where these have another meaning (crane), are the same for two labels of ImageNet
(maillot), or are rare (drake).
"""

from functools import cache
from importlib.resources import files


def split_names(text: str) -> tuple[str, ...]:
    """Return the names in a text, which are separated by commas.

    >>> split_names("cat, fire\\n hydrant")
    ('cat', 'fire hydrant')
    """
    return tuple(" ".join(name.split()) for name in text.split(","))


def name_wnid(wnid: str) -> str | None:
    """Return the name of a WordNet id; None for an unknown one.

    >>> name_wnid("n02012849"), name_wnid("n01440764")
    ('crane bird', 'tench')
    """
    return NAMES_BY_WNID.get(wnid) or _read_first_lemmas().get(wnid)


@cache
def _read_first_lemmas() -> dict[str, str]:
    text = (files("timm.data") / "_info" / "imagenet_synset_to_lemma.txt").read_text(encoding="utf-8")
    pairs = (line.partition("\t") for line in text.splitlines())
    return {wnid: lemmas.partition(",")[0].strip() for wnid, _, lemmas in pairs}


NAMES_BY_WNID: dict[str, str] = {
    entry.partition(" ")[0]: entry.partition(" ")[2]
    for entry in split_names(
        """
        n01514668 rooster, n01534433 junco bird, n01608432 kite bird, n01631663 newt, n01755581 diamondback
        rattlesnake, n01756291 sidewinder snake, n01776313 tick bug, n01847000 duck, n01871265 elephant,
        n01943899 conch shell, n01955084 chiton mollusc, n02012849 crane bird, n02085620 Chihuahua dog,
        n02086079 Pekinese dog, n02086910 papillon dog, n02088094 Afghan hound dog, n02088238 basset hound,
        n02088632 bluetick coonhound, n02090379 redbone coonhound, n02091831 Saluki dog, n02096051 Airedale
        terrier, n02096177 cairn terrier, n02096437 Dandie Dinmont terrier, n02096585 Boston terrier, n02098413
        Lhasa apso dog, n02101556 clumber spaniel, n02102040 English springer spaniel, n02105162 Malinois dog,
        n02105412 kelpie dog, n02107142 Doberman dog, n02108089 boxer dog, n02109047 Great Dane dog, n02110341
        dalmatian dog, n02111129 Leonberger dog, n02111277 Newfoundland dog, n02111500 Great Pyrenees dog,
        n02111889 Samoyed dog, n02112018 Pomeranian dog, n02112137 chow chow dog, n02113023 Pembroke Welsh
        corgi, n02113186 Cardigan Welsh corgi, n02113978 Mexican hairless dog, n02123045 tabby cat, n02134084
        polar bear, n02229544 cricket insect, n02231487 stick insect, n02276258 admiral butterfly, n02277742
        ringlet butterfly, n02279972 monarch butterfly, n02281787 lycaenid butterfly, n02328150 Angora rabbit,
        n02389026 horse, n02395406 pig, n02412080 ram sheep, n02486261 patas monkey, n02488702 colobus monkey,
        n02492035 capuchin monkey, n02493509 titi monkey, n02497673 ring-tailed lemur, n02509815 red panda,
        n02514041 barracouta fish, n02536864 coho salmon, n02606052 rock beauty fish, n02641379 gar fish,
        n02655020 pufferfish, n02704792 amphibious vehicle, n02747177 trash can, n02797295 wheelbarrow,
        n02814533 station wagon, n02814860 lighthouse, n02817516 bearskin hat, n02825657 bell tower, n02840245
        ring binder, n02869837 bonnet hat, n02879718 archery bow, n02892201 memorial plaque, n02930766 taxi,
        n03014705 wooden chest, n03016953 chest of drawers, n03017168 bell chimes, n03047690 clog shoe,
        n03065424 spiral, n03100240 convertible car, n03110669 trumpet, n03126707 construction crane, n03133878
        slow cooker, n03337140 filing cabinet, n03388549 four-poster bed, n03459775 car grille, n03476684 hair
        clip, n03478589 half-track vehicle, n03482405 wicker hamper, n03483316 hair dryer, n03492542 hard disk
        drive, n03496892 combine harvester, n03584829 clothes iron, n03594734 blue jeans, n03595614 T-shirt,
        n03666591 cigarette lighter, n03673027 ocean liner, n03680355 loafer shoe, n03710637 leotard, n03710721
        swimsuit, n03724870 face mask, n03777568 Model T car, n03782006 computer monitor, n03786901 mortar and
        pestle, n03793489 computer mouse, n03803284 dog muzzle, n03804744 metal nail, n03825788 baby bottle
        nipple, n03832673 notebook computer, n03854065 pipe organ, n03873416 boat paddle, n03877472 pajamas,
        n03929660 guitar pick, n03930630 pickup truck, n03947888 pirate ship, n03950228 water pitcher, n03954731
        carpenter's plane, n03991062 flowerpot, n04019541 hockey puck, n04033901 quill pen, n04037443 race car,
        n04118776 ruler, n04125021 safe box, n04141076 saxophone, n04141975 weighing scale, n04152593 computer
        screen, n04243546 slot machine, n04325704 fur stole, n04367480 mop, n04371774 playground swing,
        n04372370 light switch, n04389033 army tank, n04399382 teddy bear, n04417672 thatched roof, n04493381
        vat, n04515003 upright piano, n04523525 vaulted ceiling, n04554684 washing machine, n04592741 airplane
        wing, n04606251 shipwreck, n07697537 hot dog, n07742313 green apple, n09193705 mountain, n09835506
        baseball player, n10148035 bridegroom, n12620546 rose hip, n12768682 horse chestnut, n12998815 agaric
        mushroom, n13037406 gyromitra mushroom, n13040303 stinkhorn mushroom, n13044778 earthstar mushroom,
        n13052670 hen-of-the-woods mushroom, n13054560 bolete mushroom, n13133613 ear of corn
        """
    )
}
"""Names of those labels of ImageNet whose first lemma is not used."""
