# find_package(adr_model CONFIG PATHS <bundle>) gives adr::model, whose folder may be moved.
get_filename_component(_adr_bundle "${CMAKE_CURRENT_LIST_DIR}/../../.." ABSOLUTE)
if(NOT TARGET adr::model)
  add_library(adr::model SHARED IMPORTED)
  set_target_properties(adr::model PROPERTIES
    IMPORTED_LOCATION "${_adr_bundle}/lib/libadr_model.so"
    IMPORTED_SONAME libadr_model.so
    INTERFACE_INCLUDE_DIRECTORIES "${_adr_bundle}/include"
    INTERFACE_LINK_OPTIONS "-Wl,-rpath-link,${_adr_bundle}/lib")
endif()
unset(_adr_bundle)
